"""Language models: decoder-only transformers with rotary positions, as chains of units.

A token embedding, causal blocks of `lpjax.models.transformer` without biases, and a head that begins with a norm.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lpjax.config.check import require_one_of
from lpjax.errors import BadInput, require
from lpjax.models.transformer import Block, Head, check_sizes
from lpjax.nn.chain import Mode, Shape, UnitLike


@dataclass(frozen=True)
class Embedding:
    """Tokens [b, t], as floating point, to their vectors [b, t, width].

    Attributes:
      vocabulary: Number of tokens.
      width: Of a vector.
    """

    vocabulary: int
    width: int
    name = property(lambda self: f"embedding-{self.width}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """The vectors, of unit variance; they do not decay."""
        if len(in_shape) != 1:
            raise BadInput(f"{self.name}: examples of shape {in_shape}: expected tokens (t,); set data.name=text")
        return {"embedding": jax.random.normal(key, (self.vocabulary, self.width), float)}, {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """The token's vector at each position."""
        return jnp.asarray(params["embedding"], x.dtype)[x.astype(jnp.int32)], stats


def gpt(
    *,
    blocks: int,
    width: int,
    heads: int,
    classes: int,
    activation: str = "gelu",
    hidden: int | None = None,
    dropout: float = 0.0,
    tied_embedding: bool = False,
) -> list[UnitLike]:
    """The units of a language model.

    Args:
      blocks: Number of blocks.
      width: Values at a position.
      heads: Of each block's attention.
      classes: Number of tokens in the vocabulary.
      activation: Of the feed-forward layers, "gelu" or "swiglu".
      hidden: Their values at a position; None: 4 width, of "swiglu" 8/3 width.
      dropout: Of what a branch adds.
      tied_embedding: False.

    Returns:
      The embedding, the blocks, the head.

    Raises:
      BadInput: An argument out of range, or a tied embedding.
    """
    require(
        not tied_embedding,
        "model.tied_embedding=True: expected False: the embedding is in the first stage and the head in the last, on "
        "devices of their own that do not share weights; leave it out",
    )
    sizes = {"blocks": blocks} | ({} if hidden is None else {"hidden": hidden})
    check_sizes(width=width, heads=heads, dropout=dropout, rotary=True, **sizes)
    require_one_of("model.activation", activation, ("gelu", "swiglu"))
    inside = hidden or (4 * width if activation == "gelu" else 8 * width // 3)
    block = Block(heads, width // heads, inside, activation, dropout, blocks)
    return [Embedding(classes, width), *[block] * blocks, Head(classes)]
