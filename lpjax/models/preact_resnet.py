"""Residual networks of pre-activation blocks for CIFAR: He et al., arXiv:1603.05027, and wide ones, arXiv:1605.07146.

A 3x3 convolution, three groups of n blocks on maps of size s, s/2, s/4, and a head that begins with the batch norm and
ReLU which the last block leaves out.  What is added in a block goes through nothing on the way, so that a shortcut is
the identity; where the shape changes it is a 1x1 convolution of the block's activated input.
"""

import functools
from collections.abc import Callable

import jax
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.models.imagenet_resnet import PARTS, Kind, basic, bottleneck
from lpjax.models.resnet import blocks_per_group, check_sizes, classifier, groups
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, Unit
from lpjax.nn.conv import conv

BOTTLENECKS_FROM = 164
"""The least depth of `preact_resnet` that is made of bottlenecks."""


@functools.cache
def stem(features: int) -> Unit:
    """3x3 convolution and nothing else: the first block normalises."""

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        return _init_conv(key, 3, in_shape[-1], features), {}

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        return conv(x, params["kernel"], 1), stats

    return Unit(f"stem-{features}", init, apply)


@functools.cache
def block(kind: Kind, features: int, stride: int, dropout: float) -> Unit:
    """shortcut + conv(relu(bn(... conv(relu(bn(x)))))), with dropout before every convolution but the first."""
    convs = kind(features, stride)
    out = convs[-1][1]

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        layers.check_stride(in_shape, stride)
        *keys, shortcut = jax.random.split(key, len(convs) + 1)
        params, stats, channels = {}, {}, in_shape[-1]
        for part, part_key, (size, filters, _) in zip(PARTS, keys, convs, strict=False):
            norm, stats[part] = layers.init_batch_norm(channels)
            params[part] = {"norm": norm, "conv": _init_conv(part_key, size, channels, filters)}
            channels = filters
        if (in_shape[-1], stride) != (out, 1):
            params["shortcut"] = {"conv": _init_conv(shortcut, 1, in_shape[-1], out)}
        return params, stats

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        y, new = x, {}
        for layer, (part, (_, _, part_stride)) in enumerate(zip(PARTS, convs, strict=False)):
            y, new[part] = layers.batch_norm(params[part]["norm"], stats[part], y, mode)
            y = nn.relu(y)
            if layer > 0:
                y = layers.dropout(y, dropout, mode, layer)
            elif "shortcut" in params:
                x = conv(y, params["shortcut"]["conv"]["kernel"], stride)
            y = conv(y, params[part]["conv"]["kernel"], part_stride)
        return x + y, new

    return Unit(f"preact-{kind.__name__}-{features}" + (f"/{stride}" if stride > 1 else ""), init, apply)


@functools.cache
def head(classes: int) -> Unit:
    """Batch norm, ReLU and the `classifier`, in one unit: wherever a network is cut, its last unit is a whole head."""
    linear = classifier(classes)

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        norm, stats = layers.init_batch_norm(in_shape[-1])
        return {"norm": norm, "linear": linear.init(key, in_shape)[0]}, stats

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        x, stats = layers.batch_norm(params["norm"], stats, x, mode)
        return linear.apply(params["linear"], {}, nn.relu(x), mode)[0], stats

    return Unit(f"preact-head-{classes}", init, apply)


def _init_conv(key: PRNGKeyArray, size: int, channels: int, features: int) -> dict[str, Array]:
    return {"kernel": layers.he_normal(key, (size, size, channels, features))}


def preact_resnet(*, depth: int, classes: int, width: int = 16) -> tuple[Unit, ...]:
    """Units of a pre-activation ResNet: 6n+2 layers of basic blocks, or from 164 layers on 9n+2 of bottlenecks.

    Raises ValueError for another depth, or for a width or number of classes below 1.
    """
    kind, size = (bottleneck, 9) if depth >= BOTTLENECKS_FROM else (basic, 6)
    blocks = blocks_per_group(depth, size, 2)
    check_sizes("width", width, classes)
    return _units(lambda features, stride: block(kind, features, stride, 0.0), width, width, blocks, classes)


def wide_resnet(*, depth: int, widen: int, classes: int, dropout: float = 0.0) -> tuple[Unit, ...]:
    """Units of WRN-depth-widen: 6n+4 layers, basic blocks of `widen` times 16, 32 and 64 channels.

    dropout: probability that a value between the two convolutions of a block is 0, in training.
    Raises ValueError for another depth, a widen or number of classes below 1, or a dropout outside [0, 1).
    """
    blocks = blocks_per_group(depth, 6, 4)
    check_sizes("widen", widen, classes)
    if not 0 <= dropout < 1:
        raise BadInput(f"model.dropout={dropout}: expected a probability 0 <= dropout < 1; the paper uses 0 or 0.3")
    return _units(lambda features, stride: block(basic, features, stride, dropout), 16, 16 * widen, blocks, classes)


def _units(
    block: Callable[[int, int], Unit], stem_width: int, width: int, blocks: int, classes: int
) -> tuple[Unit, ...]:
    return (stem(stem_width), *groups(block, width, [blocks] * 3), head(classes))
