"""ImageNet-style residual networks of 18 to 152 layers: He et al., arXiv:1512.03385, table 1.

A 7x7 convolution and a max pooling, both at stride 2, four groups of post-activation blocks on maps of size s/4 to
s/32, global average pooling and a linear classifier.  A bottleneck takes its stride in the 3x3 convolution, as
torchvision's networks do ("v1.5"), and blocks may start as identities: their last scale is 0 (arXiv:1706.02677).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.models.resnet import check_sizes, classifier, conv_block, groups
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, Unit

PARTS = ("first", "second", "third")
"""What the convolutions of a block are called in its parameters."""

Convs = tuple[tuple[int, int, int], ...]
"""The convolutions of a block, in order: kernel size, features, stride."""

Kind = Callable[[int, int], Convs]


def basic(features: int, stride: int) -> Convs:
    """Two 3x3 convolutions, the first with the stride."""
    return (3, features, stride), (3, features, 1)


def bottleneck(features: int, stride: int) -> Convs:
    """1x1 to `features`, 3x3 with the stride, 1x1 to four times as many."""
    return (1, features, 1), (3, features, stride), (1, 4 * features, 1)


GROUPS: dict[int, tuple[Kind, tuple[int, ...]]] = {
    18: (basic, (2, 2, 2, 2)),
    34: (basic, (3, 4, 6, 3)),
    50: (bottleneck, (3, 4, 6, 3)),
    101: (bottleneck, (3, 4, 23, 3)),
    152: (bottleneck, (3, 8, 36, 3)),
}
"""By depth: the kind of block and how many of them each group has."""


@functools.cache
def block(kind: Kind, features: int, stride: int, zero_init: bool) -> Unit:
    """relu(shortcut(x) + bn(conv(... relu(bn(conv(x)))))); the shortcut is a 1x1 conv_norm where the shape changes."""
    convs = kind(features, stride)
    out = convs[-1][1]

    def init(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        layers.check_stride(in_shape, stride)
        *keys, shortcut = jax.random.split(key, len(convs) + 1)
        params, stats, channels = {}, {}, in_shape[-1]
        for part, part_key, (size, filters, _) in zip(PARTS, keys, convs, strict=False):
            params[part], stats[part] = layers.init_conv_norm(part_key, size, channels, filters)
            channels = filters
        if zero_init:
            params[part]["norm"]["scale"] = jnp.zeros(out)
        if (in_shape[-1], stride) != (out, 1):
            params["shortcut"], stats["shortcut"] = layers.init_conv_norm(shortcut, 1, in_shape[-1], out)
        return params, stats

    def apply(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        y, new = x, {}
        for part, (_, _, part_stride) in zip(PARTS, convs, strict=False):
            y = y if part == "first" else nn.relu(y)
            y, new[part] = layers.conv_norm(params[part], stats[part], y, mode, part_stride)
        if "shortcut" in params:
            x, new["shortcut"] = layers.conv_norm(params["shortcut"], stats["shortcut"], x, mode, stride)
        return nn.relu(x + y), new

    return Unit(f"{kind.__name__}-{features}" + (f"/{stride}" if stride > 1 else ""), init, apply)


def _init_max_pool(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
    layers.check_stride(in_shape, 2)
    return {}, {}


def _apply_max_pool(params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
    return layers.max_pool(x), stats


MAX_POOL = Unit("max_pool/2", _init_max_pool, _apply_max_pool)


def imagenet_resnet(*, depth: int, classes: int, width: int = 64, zero_init: bool = True) -> tuple[Unit, ...]:
    """Units of a ResNet of 18, 34 (basic blocks), 50, 101 or 152 layers (bottlenecks); images of 17 pixels or more.

    Raises ValueError for another depth, or for a width or number of classes below 1.
    """
    if depth not in GROUPS:
        raise BadInput(
            f"model.depth={depth}: expected one of {', '.join(map(str, GROUPS))}; choose one, or another model"
        )
    check_sizes("width", width, classes)
    kind, counts = GROUPS[depth]
    blocks = groups(lambda features, stride: block(kind, features, stride, zero_init), width, counts)
    return (conv_block(width, 2, 7), MAX_POOL, *blocks, classifier(classes))
