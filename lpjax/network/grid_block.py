"""The AuxNet's residual block on a coarse grid, whatever the size of the maps it is given.

Coarsening in space, as parareal's coarse propagators do: Ruprecht 2014, arXiv:1401.7829.
"""

from dataclasses import dataclass

import jax
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.models.resnet import ConvBlock, basic_block, check_channels
from lpjax.nn import chain, layers
from lpjax.nn.chain import Chain, Mode, Shape, UnitLike, make_chain


def on_grid(shape: Shape, grid: int) -> Shape:
    """The shape of a map [H, W, C] averaged over the smallest windows that leave at most grid x grid pixels."""
    if len(shape) != 3:
        return shape
    return *(-(-size // -(-size // grid)) for size in shape[:2]), shape[2]


@dataclass(frozen=True)
class GridBlock:
    """relu(S x + U C R x): [b, H, W, C] -> [b, h, w, features], (h, w) = `size` or what x has, if that is smaller.

    R averages over windows to at most grid x grid pixels, C is a 3x3 convolution, `blocks` residual blocks, both of
    `inner` channels, and a 1x1 convolution, U repeats pixels over the windows again.  S averages to `size` and adds
    channels of zeros, so that details pass.  On a map that is on the grid already R and U do nothing.  Without blocks
    and with as many channels inside, C is a 3x3 convolution and nothing else.

    Attributes:
      features: Channels of the output, not fewer than of the input.
      inner: Channels inside.
      size: (h, w), in pixels.
      grid: Side in pixels of the largest map that C sees.
      blocks: Residual blocks in C.
    """

    features: int
    inner: int
    size: tuple[int, ...]
    grid: int
    blocks: int
    name = property(lambda self: f"grid{self.grid}-{self.features}({self.inner})x{self.blocks}")

    def _inside(self, in_shape: Shape) -> Chain:
        """C without its last convolution."""
        deep = self.blocks > 0 or self.inner != self.features
        blocks = [basic_block(self.inner, 1)] * self.blocks
        units: list[UnitLike] = [ConvBlock(self.inner, 1, 3), *blocks] if deep else []
        small = *(min(have, want) for have, want in zip(in_shape, self.size, strict=False)), in_shape[-1]
        return make_chain(units, on_grid(small, self.grid))

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of C: "units", and its last convolution "out"."""
        check_channels(self.features, in_shape[-1], "choose other cuts")
        first, last = jax.random.split(key)
        inside = self._inside(in_shape)
        params, stats = chain.init(inside, first)
        size = 1 if inside.units else 3
        out, out_stats = layers.init_conv_norm(last, size, inside.out_shape[-1], self.features)
        return {"units": params, "out": out}, {"units": stats, "out": out_stats}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """relu(S x + U C R x)."""
        inside = self._inside(x.shape[1:])
        y = layers.pooled(x, inside.in_shape[:2])
        y, unit_stats = chain.apply(inside, params["units"], stats["units"], y, mode)
        y, out_stats = layers.conv_norm(params["out"], stats["out"], y, mode)
        x = layers.padded(layers.pooled(x, self.size), self.features)
        return nn.relu(x + layers.spread(y, x.shape[1:3])), {"units": unit_stats, "out": out_stats}
