"""Vision transformers (arXiv:2010.11929) as chains of units: patches of an image are the tokens.

A linear layer of each patch, blocks of `lpjax.models.transformer` that see all positions, and a head.  What crosses an
interface is [tokens, width].
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lpjax.config.check import require_one_of
from lpjax.errors import BadInput
from lpjax.models.transformer import Block, Head, check_sizes, init_linear, linear
from lpjax.nn.chain import Mode, Shape, UnitLike

SIZES = {"Ti": (12, 192, 3), "S": (12, 384, 6), "B": (12, 768, 12)}
"""Blocks, width and heads, by the names of arXiv:2012.12877 and arXiv:2010.11929."""

POSITION_DEVIATION = 0.02


def patches(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b t p"]:
    """The values of each patch of size x size pixels, patches and pixels row by row."""
    b, height, width, channels = x.shape
    x = x.reshape(b, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * channels)


@dataclass(frozen=True)
class Patches:
    """Patches [b, t, width] of images [b, H, W, C], each through a linear layer, plus a learned position.

    Attributes:
      size: Side of a patch in pixels.
      width: Values of a token.
      class_token: Whether a learned token comes before them.
    """

    size: int
    width: int
    class_token: bool
    name = property(lambda self: f"patches-{self.size}-{self.width}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """The linear layer; positions, and the class token, which do not decay."""
        size = self.size
        if len(in_shape) != 3 or in_shape[0] % size or in_shape[1] % size:
            raise BadInput(
                f"{self.name}: examples of shape {in_shape}: expected images whose sides are multiples of "
                f"model.patch={size}; choose another patch, or data.crop"
            )
        tokens = in_shape[0] * in_shape[1] // size**2 + self.class_token
        position = jax.random.normal(jax.random.fold_in(key, 1), (tokens, self.width), float) * POSITION_DEVIATION
        own = {"linear": init_linear(key, size**2 * in_shape[-1], self.width, bias=True), "position": position}
        return own | ({"class_token": jnp.zeros(self.width)} if self.class_token else {}), {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """The tokens, the class token first."""
        y = linear(params["linear"], patches(x, self.size))
        if self.class_token:
            first = jnp.broadcast_to(params["class_token"].astype(y.dtype), (len(y), 1, self.width))
            y = jnp.concatenate([first, y], axis=1)
        return y + params["position"].astype(y.dtype)[None], stats


def vit(
    *,
    patch: int,
    classes: int,
    size: str = "Ti",
    blocks: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    pooling: str = "class",
    dropout: float = 0.0,
) -> list[UnitLike]:
    """The units of a vision transformer.

    Args:
      patch: Side of a patch in pixels, a divisor of the images' sides.
      classes: Of the images.
      size: "Ti", "S" or "B", which the three that follow are of where they are None (`SIZES`).
      blocks: Number of blocks.
      width: Values of a token.
      heads: Of each block's attention.
      pooling: What the head reads: "class", a token of its own, or "mean", the mean of the patches.
      dropout: Of what a branch adds.

    Returns:
      The patches, the blocks, the head.

    Raises:
      BadInput: An argument out of range.
    """
    require_one_of("model.size", size, SIZES)
    require_one_of("model.pooling", pooling, ("class", "mean"))
    given = zip((blocks, width, heads), SIZES[size], strict=True)
    blocks, width, heads = (usual if own is None else own for own, usual in given)
    check_sizes(width=width, heads=heads, dropout=dropout, blocks=blocks, patch=patch)
    block = Block(
        heads, width // heads, 4 * width, "exact_gelu", dropout, blocks, causal=False, rotary=False, bias=True
    )
    return [Patches(patch, width, pooling == "class"), *[block] * blocks, Head(classes, pooling, bias=True)]
