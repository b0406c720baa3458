"""CIFAR-style residual networks of depth 6n+2: He et al., arXiv:1512.03385, section 4.2.

A 3x3 stem, three groups of n post-activation blocks of widths w, 2w, 4w on maps of size s, s/2, s/4, global average
pooling and a linear classifier.  Shortcuts are free of parameters (option A: subsample, pad the new channels with 0).
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, Unit


@functools.cache  # equal arguments give the same unit, which is what makes a run (so no defaults: they would differ)
def conv_block(features: int, stride: int, size: int) -> Unit:
    """size x size convolution, batch norm, ReLU: [b, H, W, C] -> [b, ceil(H/stride), ceil(W/stride), features]."""

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        layers.check_stride(in_shape, stride)
        return layers.init_conv_norm(key, size, in_shape[-1], features)

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        x, stats = layers.conv_norm(params, stats, x, mode, stride)
        return nn.relu(x), stats

    return Unit(f"conv{size}-{features}" + (f"/{stride}" if stride > 1 else ""), init, apply)


@functools.cache
def basic_block(features: int, stride: int) -> Unit:
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), both convolutions 3x3, the first with the stride."""

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        if features < in_shape[-1]:
            raise BadInput(
                f"features={features} after {in_shape[-1]} channels: a parameter-free shortcut can only add channels; "
                f"use features >= {in_shape[-1]}"
            )
        layers.check_stride(in_shape, stride)
        first, second = jax.random.split(key)
        params1, stats1 = layers.init_conv_norm(first, 3, in_shape[-1], features)
        params2, stats2 = layers.init_conv_norm(second, 3, features, features)
        return {"first": params1, "second": params2}, {"first": stats1, "second": stats2}

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        y, first = layers.conv_norm(params["first"], stats["first"], x, mode, stride)
        y, second = layers.conv_norm(params["second"], stats["second"], nn.relu(y), mode)
        return nn.relu(layers.shortcut(x, features, stride) + y), {"first": first, "second": second}

    return Unit(f"block-{features}" + (f"/{stride}" if stride > 1 else ""), init, apply)


@functools.cache
def classifier(classes: int) -> Unit:
    """Global average pooling and a linear layer: [b, H, W, C] -> logits [b, classes]."""

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        return layers.init_linear(key, in_shape[-1], classes), {}

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        return layers.linear(params, layers.wide(x).mean((1, 2))), stats

    return Unit(f"classifier-{classes}", init, apply)


def blocks_per_group(depth: int, size: int, others: int) -> int:
    """n of a depth of `size` n + `others` layers."""
    blocks, rest = divmod(depth - others, size)
    if rest or blocks < 1:
        near = max(round((depth - others) / size), 1) * size + others
        raise BadInput(f"model.depth={depth}: expected {size}n+{others} with n >= 1; the nearest is {near}")
    return blocks


def check_sizes(name: str, size: int, classes: int) -> None:
    """Raises ValueError for a width (called `name`) or number of classes below 1."""
    if size < 1 or classes < 1:
        raise BadInput(f"model.{name}={size} with {classes} classes: both must be at least 1")


def groups(block: Callable[[int, int], Unit], width: int, counts: Sequence[int]) -> list[Unit]:
    """`block(features, stride)` in groups of `counts`: a group has twice the features and half the map of the last."""
    units: list[Unit] = []
    for group, count in enumerate(counts):
        features = width * 2**group
        units += [block(features, 1 if group == 0 else 2)] + [block(features, 1)] * (count - 1)
    return units


def resnet(*, depth: int, width: int, classes: int) -> tuple[Unit, ...]:
    """Units of a ResNet of `depth` = 6n+2 layers, `width` channels in its first group; any input size and channels.

    Raises ValueError for another depth, or for a width or number of classes below 1.
    """
    blocks = blocks_per_group(depth, 6, 2)
    check_sizes("width", width, classes)
    return (conv_block(width, 1, 3), *groups(basic_block, width, [blocks] * 3), classifier(classes))
