"""ImageNet-style residual networks of 18 to 152 layers: He et al., arXiv:1512.03385, table 1.

A 7x7 convolution and a max pooling, both at stride 2, four groups of post-activation blocks on maps of size s/4 to
s/32, global average pooling and a linear classifier.  A bottleneck takes its stride in the 3x3 convolution, as
torchvision's networks do ("v1.5"), and blocks may start as identities: their last scale is 0 (arXiv:1706.02677).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.models.resnet import Classifier, ConvBlock, check_sizes, groups, with_stride
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, UnitLike

PARTS = ("first", "second", "third")
"""What the convolutions of a block are called in its parameters."""

Kind = Literal["basic", "bottleneck"]

GROUPS: dict[int, tuple[Kind, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""By depth: the kind of block and how many of them each group has."""


def convolutions(kind: Kind, features: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """What a block is made of.

    Args:
      kind: "basic": two 3x3 convolutions, the first with the stride.  "bottleneck": 1x1 to `features`, 3x3 with the
        stride, 1x1 to four times as many.
      features: Channels inside.
      stride: In pixels.

    Returns:
      Its convolutions, in order: (kernel size, features, stride).
    """
    if kind == "basic":
        return (3, features, stride), (3, features, 1)
    return (1, features, 1), (3, features, stride), (1, 4 * features, 1)


@dataclass(frozen=True)
class PostActivationBlock:
    """Residual block with batch norm and ReLU after each convolution, and after the sum.

    Attributes:
      kind: See `convolutions`.
      features: Likewise.
      stride: Likewise.
      zero_init: The last batch norm begins with scale 0, so that the block begins as its shortcut.
    """

    kind: Kind
    features: int
    stride: int
    zero_init: bool
    name = property(lambda self: with_stride(f"{self.kind}-{self.features}", self.stride))

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of a `layers.conv_norm` for each of `PARTS`, and of a 1x1 "shortcut" where the shape changes."""
        layers.check_stride(in_shape, self.stride)
        convs = convolutions(self.kind, self.features, self.stride)
        *keys, shortcut = jax.random.split(key, len(convs) + 1)
        params, stats, channels = {}, {}, in_shape[-1]
        for part, part_key, (size, filters, _) in zip(PARTS, keys, convs, strict=False):
            params[part], stats[part] = layers.init_conv_norm(part_key, size, channels, filters)
            channels = filters
        if self.zero_init:
            params[part]["norm"]["scale"] = jnp.zeros(channels)
        if (in_shape[-1], self.stride) != (channels, 1):
            params["shortcut"], stats["shortcut"] = layers.init_conv_norm(shortcut, 1, in_shape[-1], channels)
        return params, stats

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """relu(shortcut(x) + bn(conv(... relu(bn(conv(x))))))."""
        y, new = x, {}
        for part, (_, _, stride) in zip(PARTS, convolutions(self.kind, self.features, self.stride), strict=False):
            y = y if part == "first" else nn.relu(y)
            y, new[part] = layers.conv_norm(params[part], stats[part], y, mode, stride)
        if "shortcut" in params:
            x, new["shortcut"] = layers.conv_norm(params["shortcut"], stats["shortcut"], x, mode, self.stride)
        return nn.relu(x + y), new


@dataclass(frozen=True)
class MaxPool:
    """Maximum over 3x3 windows at stride 2, see `layers.max_pool`."""

    name = "max_pool/2"

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """No parameters."""
        layers.check_stride(in_shape, 2)
        return {}, {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """The maxima."""
        return layers.max_pool(x), stats


def imagenet_resnet(*, depth: int, classes: int, width: int = 64, zero_init: bool = True) -> tuple[UnitLike, ...]:
    """Units of a ResNet for images of 17 pixels or more.

    Args:
      depth: 18 or 34 layers (basic blocks), 50, 101 or 152 (bottlenecks).
      classes: Of the images.
      width: Channels of the first group.
      zero_init: See `PostActivationBlock`.

    Returns:
      The units, stem to classifier.

    Raises:
      BadInput: Another depth, or a width or number of classes below 1.
    """
    if depth not in GROUPS:
        raise BadInput(
            f"model.depth={depth}: expected one of {', '.join(map(str, GROUPS))}; choose one, or another model"
        )
    check_sizes("width", width, classes)
    kind, counts = GROUPS[depth]
    blocks = groups(partial(PostActivationBlock, kind, zero_init=zero_init), width, counts)
    return (ConvBlock(width, 2, 7), MaxPool(), *blocks, Classifier(classes))
