"""CIFAR-style residual networks of depth 6n+2: He et al., arXiv:1512.03385, section 4.2.

A 3x3 stem, three groups of n post-activation blocks of widths w, 2w, 4w on maps of size s, s/2, s/4, global average
pooling and a linear classifier.  Shortcuts are free of parameters (option A: subsample, pad the new channels with 0).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, UnitLike


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


@dataclass(frozen=True)
class BasicBlock:
    """Residual block of two 3x3 convolutions, the first with the stride.

    Attributes:
      features: Channels of the output, not fewer than of the input.
      stride: In pixels.
    """

    features: int
    stride: int
    name = property(lambda self: with_stride(f"block-{self.features}", self.stride))

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of two `layers.conv_norm`, "first" and "second"."""
        check_channels(self.features, in_shape[-1], f"use features >= {in_shape[-1]}")
        layers.check_stride(in_shape, self.stride)
        first, second = jax.random.split(key)
        params1, stats1 = layers.init_conv_norm(first, 3, in_shape[-1], self.features)
        params2, stats2 = layers.init_conv_norm(second, 3, self.features, self.features)
        return {"first": params1, "second": params2}, {"first": stats1, "second": stats2}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""
        y, first = layers.conv_norm(params["first"], stats["first"], x, mode, self.stride)
        y, second = layers.conv_norm(params["second"], stats["second"], nn.relu(y), mode)
        return nn.relu(layers.shortcut(x, self.features, self.stride) + y), {"first": first, "second": second}


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
    return (ConvBlock(width, 1, 3), *groups(BasicBlock, width, [blocks] * 3), Classifier(classes))
