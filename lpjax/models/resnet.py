"""Residual networks of post-activation blocks: He et al., arXiv:1512.03385.

For CIFAR (section 4.2) they have 6n+2 layers: a 3x3 stem, three groups of n blocks of widths w, 2w, 4w on maps of size
s, s/2, s/4, global average pooling and a linear classifier.  Shortcuts are free of parameters (option A: subsample, pad
the new channels with 0).

For ImageNet (table 1) they have 18 to 152: a 7x7 convolution and a max pooling, both at stride 2, four groups of blocks
on maps of size s/4 to s/32, and the same end.  A bottleneck takes its stride in the 3x3 convolution, as torchvision's
networks do ("v1.5"), and blocks may start as identities: their last scale is 0 (arXiv:1706.02677).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, UnitLike

PARTS = ("first", "second", "third")
"""What the convolutions of a block are called in its parameters."""

Kind = Literal["basic", "bottleneck"]


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, batch norm, ReLU: [b, H, W, C] -> [b, ceil(H/stride), ceil(W/stride), features].

    Attributes:
      features: Channels of the output.
      stride: In pixels.
      size: Side of the kernel, odd.
    """

    features: int
    stride: int
    size: int
    name = property(lambda self: with_stride(f"conv{self.size}-{self.features}", self.stride))

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of `layers.conv_norm`."""
        layers.check_stride(in_shape, self.stride)
        return layers.init_conv_norm(key, self.size, in_shape[-1], self.features)

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """relu(bn(conv(x)))."""
        x, stats = layers.conv_norm(params, stats, x, mode, self.stride)
        return nn.relu(x), stats


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
      padded: Where the shape changes, the shortcut is `layers.shortcut`, free of parameters, not a 1x1 convolution.
    """

    kind: Kind
    features: int
    stride: int
    zero_init: bool = False
    padded: bool = False
    name = property(lambda self: with_stride(f"{'block' if self.padded else self.kind}-{self.features}", self.stride))

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of a `layers.conv_norm` for each of `PARTS`, and of a 1x1 "shortcut"."""
        convs = convolutions(self.kind, self.features, self.stride)
        if self.padded:
            check_channels(convs[-1][1], in_shape[-1], f"use features >= {in_shape[-1]}")
        layers.check_stride(in_shape, self.stride)
        *keys, shortcut = jax.random.split(key, len(convs) + 1)
        params, stats, channels = {}, {}, in_shape[-1]
        for part, part_key, (size, filters, _) in zip(PARTS, keys, convs, strict=False):
            params[part], stats[part] = layers.init_conv_norm(part_key, size, channels, filters)
            channels = filters
        if self.zero_init:
            params[part]["norm"]["scale"] = jnp.zeros(channels)
        if not self.padded and (in_shape[-1], self.stride) != (channels, 1):
            params["shortcut"], stats["shortcut"] = layers.init_conv_norm(shortcut, 1, in_shape[-1], channels)
        return params, stats

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """relu(shortcut(x) + bn(conv(... relu(bn(conv(x))))))."""
        y, _, stats = self.with_residue(params, stats, x, mode)
        return y, stats

    def with_residue(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, Array, dict]:
        """As `apply`, with what is added to the shortcut, see `nn.residues`."""
        y, new = x, {}
        for part, (_, _, stride) in zip(PARTS, convolutions(self.kind, self.features, self.stride), strict=False):
            y = y if part == "first" else nn.relu(y)
            y, new[part] = layers.conv_norm(params[part], stats[part], y, mode, stride)
        if self.padded:
            x = layers.shortcut(x, y.shape[-1], self.stride)
        elif "shortcut" in params:
            x, new["shortcut"] = layers.conv_norm(params["shortcut"], stats["shortcut"], x, mode, self.stride)
        return nn.relu(x + y), y, new


basic_block = partial(PostActivationBlock, "basic", padded=True)
"""(features, stride) -> a block of CIFAR's residual networks; its features are not fewer than its input's channels."""


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


@dataclass(frozen=True)
class Classifier:
    """Global average pooling and a linear layer: [b, H, W, C] -> logits [b, classes]."""

    classes: int
    name = property(lambda self: f"classifier-{self.classes}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of `layers.linear`."""
        return layers.init_linear(key, in_shape[-1], self.classes), {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """Logits, in single precision at least."""
        return layers.linear(params, layers.at_least_float32(x).mean((1, 2))), stats


def with_stride(name: str, stride: int) -> str:
    """The name of a unit, followed by its stride where that is not 1."""
    return f"{name}/{stride}" if stride > 1 else name


def check_channels(features: int, channels: int, remedy: str) -> None:
    """Refuse a parameter-free shortcut to fewer features than there are channels.

    Raises:
      BadInput: There are fewer; what to do is `remedy`.
    """
    if features < channels:
        raise BadInput(
            f"features={features} after {channels} channels: a parameter-free shortcut can only add channels; {remedy}"
        )


def blocks_per_group(depth: int, size: int, others: int) -> int:
    """n of a depth of `size` n + `others` layers.

    Raises:
      BadInput: No n >= 1 gives this depth.
    """
    blocks, rest = divmod(depth - others, size)
    if rest or blocks < 1:
        near = max(round((depth - others) / size), 1) * size + others
        raise BadInput(f"model.depth={depth}: expected {size}n+{others} with n >= 1; the nearest is {near}")
    return blocks


def check_sizes(name: str, size: int, classes: int) -> None:
    """Refuse a width (called `name`) or number of classes below 1.

    Raises:
      BadInput: One of them is.
    """
    if size < 1 or classes < 1:
        raise BadInput(f"model.{name}={size} with {classes} classes: both must be at least 1")


def groups(block: Callable[[int, int], UnitLike], width: int, counts: Sequence[int]) -> list[UnitLike]:
    """Groups of blocks, each of twice the features and half the map of the one before.

    Args:
      block: (features, stride) -> a block.
      width: Features of the first group.
      counts: Blocks of each group.

    Returns:
      The blocks, in order.
    """
    units: list[UnitLike] = []
    for group, count in enumerate(counts):
        features = width * 2**group
        units += [block(features, 1 if group == 0 else 2)] + [block(features, 1)] * (count - 1)
    return units


def resnet(*, depth: int, width: int, classes: int) -> tuple[UnitLike, ...]:
    """Units of a ResNet for images of any size and number of channels.

    Args:
      depth: Layers, 6n+2.
      width: Channels of the first group.
      classes: Of the images.

    Returns:
      The units, stem to classifier.

    Raises:
      BadInput: Another depth, or a width or number of classes below 1.
    """
    blocks = blocks_per_group(depth, 6, 2)
    check_sizes("width", width, classes)
    return (ConvBlock(width, 1, 3), *groups(basic_block, width, [blocks] * 3), Classifier(classes))


GROUPS: dict[int, tuple[Kind, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""By depth: the kind of block and how many of them each group has."""


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
