"""Language models: decoder-only transformers with rotary positions, as chains of units.

A token embedding, pre-norm blocks, and a head that begins with a norm.  A block is

    x <- x + attention(norm(x)),    x <- x + feed_forward(norm(x))

with causal attention (arXiv:1706.03762), positions by rotation of queries and keys (arXiv:2104.09864), RMS norm
(arXiv:1910.07467) and a feed-forward layer of GELU or SwiGLU (arXiv:2002.05202).  No layer has a bias.  Weights are
drawn with variance 1 / fan_in; of those that end a branch, 1 / (2 blocks) of that (arXiv:1904.10509), and of the head
1 / width of that.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lpjax.config.check import require_one_of
from lpjax.errors import BadInput, require
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, UnitLike

ROTARY_BASE = 10_000.0
"""Slowest wave length of the rotation, over 2 pi tokens."""

NORM_EPSILON = 1e-6


def rotated(x: Float[Array, "b t n h"]) -> Float[Array, "b t n h"]:
    """Rotate each pair of values (i, i + h/2) of a head by an angle that grows with the position."""
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=float) / half)
    angle = jnp.arange(x.shape[1], dtype=float)[:, None] * frequency[None]
    cosine, sine = (function(angle).astype(x.dtype)[None, :, None] for function in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=-1)


def causal_attention(
    query: Float[Array, "b t n h"], key: Float[Array, "b t n h"], value: Float[Array, "b t n h"]
) -> Float[Array, "b t n h"]:
    """Attention to the positions up to one's own.

    By `jax.nn.dot_product_attention`, whose softmax is in single precision; in double precision by hand.
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)
    logits = jnp.einsum("btnh,bsnh->bnts", query, key) / query.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), value)


def rms_norm(scale: Float[Array, " c"], x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """x over the root of its mean square at each position, times a learnt scale."""
    y = layers.at_least_float32(x)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + NORM_EPSILON)
    return (y * scale[None, None]).astype(x.dtype)


def _kernel(key: PRNGKeyArray, channels: int, features: int, variance: float = 1.0) -> dict[str, Array]:
    return {"kernel": jax.random.normal(key, (channels, features), float) * (variance / channels) ** 0.5}


def _matmul(params: dict[str, Array], x: Array) -> Array:
    return x @ params["kernel"].astype(x.dtype)


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


@dataclass(frozen=True)
class Block:
    """Causal attention and a feed-forward layer, each behind a norm and beside a shortcut.

    Attributes:
      heads: Of the attention.
      size: Values of a head, even.
      hidden: Values of the feed-forward layer at a position.
      activation: Of the feed-forward layer, "gelu" or "swiglu".
      dropout: Probability that a value of what a branch adds is set to 0, in training.
      depth: Blocks of the network.
    """

    heads: int
    size: int
    hidden: int
    activation: str
    dropout: float
    depth: int
    name = property(lambda self: f"block-{self.heads}x{self.size}-{self.activation}-{self.hidden}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Kernels of both branches, and the scales of their norms."""
        width, inside, gated = in_shape[-1], self.heads * self.size, self.activation == "swiglu"
        keys, last = jax.random.split(key, 4), 0.5 / self.depth
        return {
            "attention_norm": {"scale": jnp.ones(width)},
            "attention_in": _kernel(keys[0], width, 3 * inside),
            "attention_out": _kernel(keys[1], inside, width, last),
            "forward_norm": {"scale": jnp.ones(width)},
            "forward_in": _kernel(keys[2], width, (2 if gated else 1) * self.hidden),
            "forward_out": _kernel(keys[3], self.hidden, width, last),
        }, {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """Both branches, one after the other."""
        x = x + layers.dropout(self._attention(params, x), self.dropout, mode, layer=0)
        return x + layers.dropout(self._forward(params, x), self.dropout, mode, layer=1), stats

    def _attention(self, params: dict, x: Array) -> Array:
        y = _matmul(params["attention_in"], rms_norm(params["attention_norm"]["scale"], x))
        query, key, value = jnp.split(y.reshape(*y.shape[:2], 3 * self.heads, self.size), 3, axis=2)
        y = causal_attention(rotated(query), rotated(key), value)
        return _matmul(params["attention_out"], y.reshape(*y.shape[:2], -1))

    def _forward(self, params: dict, x: Array) -> Array:
        y = _matmul(params["forward_in"], rms_norm(params["forward_norm"]["scale"], x))
        if self.activation == "gelu":
            y = jax.nn.gelu(y)
        else:
            gate, value = jnp.split(y, 2, axis=-1)
            y = jax.nn.silu(gate) * value
        return _matmul(params["forward_out"], y)

    def narrowed(self, width: float) -> "Block":
        """The block with this share of its heads and hidden values, at least one, for pieces of an AuxNet."""
        heads, hidden = (max(1, round(width * count)) for count in (self.heads, self.hidden))
        return replace(self, heads=heads, hidden=hidden)


@dataclass(frozen=True)
class Head:
    """A norm, and the logits of the next token at each position.

    Attributes:
      vocabulary: Number of tokens.
    """

    vocabulary: int
    name = property(lambda self: f"head-{self.vocabulary}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """A kernel, and the scale of the norm."""
        width = in_shape[-1]
        return {"norm": {"scale": jnp.ones(width)}, "linear": _kernel(key, width, self.vocabulary, 1 / width)}, {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """[b, t, width] -> [b, t, vocabulary], in single precision at least."""
        y = rms_norm(params["norm"]["scale"], layers.at_least_float32(x))
        return _matmul(params["linear"], y), stats


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
    sizes = {"blocks": blocks, "width": width, "heads": heads} | ({} if hidden is None else {"hidden": hidden})
    for name, size in sizes.items():
        require(
            isinstance(size, int) and size > 0,
            f"model.{name}={size!r}: expected a whole number of at least 1; correct it",
        )
    require(
        width % (2 * heads) == 0,
        f"model.width={width}: expected a multiple of 2 * model.heads = {2 * heads}, so that heads can be rotated",
    )
    require_one_of("model.activation", activation, ("gelu", "swiglu"))
    require(0 <= dropout < 1, f"model.dropout={dropout}: expected 0 to below 1")
    inside = hidden or (4 * width if activation == "gelu" else 8 * width // 3)
    block = Block(heads, width // heads, inside, activation, dropout, blocks)
    return [Embedding(classes, width), *[block] * blocks, Head(classes)]
