"""Residual networks of pre-activation blocks for CIFAR: He et al., arXiv:1603.05027, and wide ones, arXiv:1605.07146.

A 3x3 convolution, three groups of n blocks on maps of size s, s/2, s/4, and a head that begins with the batch norm and
ReLU which the last block leaves out.  What is added in a block goes through nothing on the way, so that a shortcut is
the identity; where the shape changes it is a 1x1 convolution of the block's activated input.
"""

from dataclasses import dataclass
from functools import partial

import jax
from jax import nn
from jaxtyping import Array, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.models import resnet
from lpjax.nn import layers
from lpjax.nn.chain import Mode, Shape, UnitLike
from lpjax.nn.conv import conv

BOTTLENECKS_FROM = 164
"""The least depth of `preact_resnet` that is made of bottlenecks."""


@dataclass(frozen=True)
class Stem:
    """3x3 convolution to `features` channels and nothing else: the first block normalises."""

    features: int
    name = property(lambda self: f"stem-{self.features}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """A kernel."""
        return layers.init_conv(key, 3, in_shape[-1], self.features), {}

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """conv(x)."""
        return conv(x, params["kernel"], 1), stats


@dataclass(frozen=True)
class PreActivationBlock:
    """Residual block with batch norm and ReLU before each convolution, and dropout before each but the first.

    Attributes:
      kind: See `resnet.convolutions`.
      features: Likewise.
      stride: Likewise.
      dropout: Probability that a value is set to 0, in training.
    """

    kind: resnet.Kind
    features: int
    stride: int
    dropout: float
    name = property(lambda self: resnet.with_stride(f"preact-{self.kind}-{self.features}", self.stride))

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """A "norm" and a "conv" for each of `PARTS`, and a 1x1 "shortcut" where the shape changes."""
        layers.check_stride(in_shape, self.stride)
        convs = resnet.convolutions(self.kind, self.features, self.stride)
        *keys, shortcut = jax.random.split(key, len(convs) + 1)
        params, stats, channels = {}, {}, in_shape[-1]
        for part, part_key, (size, filters, _) in zip(resnet.PARTS, keys, convs, strict=False):
            norm, stats[part] = layers.init_batch_norm(channels)
            params[part] = {"norm": norm, "conv": layers.init_conv(part_key, size, channels, filters)}
            channels = filters
        if (in_shape[-1], self.stride) != (channels, 1):
            params["shortcut"] = {"conv": layers.init_conv(shortcut, 1, in_shape[-1], channels)}
        return params, stats

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """shortcut + conv(relu(bn(... conv(relu(bn(x))))))."""
        y, _, stats = self.with_residue(params, stats, x, mode)
        return y, stats

    def with_residue(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, Array, dict]:
        """As `apply`, with what is added to the shortcut, see `nn.residues`."""
        y, new = x, {}
        convs = resnet.convolutions(self.kind, self.features, self.stride)
        for layer, (part, (_, _, stride)) in enumerate(zip(resnet.PARTS, convs, strict=False)):
            y, new[part] = layers.batch_norm(params[part]["norm"], stats[part], y, mode)
            y = nn.relu(y)
            if layer > 0:
                y = layers.dropout(y, self.dropout, mode, layer)
            elif "shortcut" in params:
                x = conv(y, params["shortcut"]["conv"]["kernel"], self.stride)
            y = conv(y, params[part]["conv"]["kernel"], stride)
        return x + y, y, new


@dataclass(frozen=True)
class PreActivationHead:
    """Batch norm, ReLU and the `Classifier`, in one unit: wherever a network is cut, its last unit is a whole head."""

    classes: int
    name = property(lambda self: f"preact-head-{self.classes}")

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, dict]:
        """Those of "norm" and "linear"."""
        norm, stats = layers.init_batch_norm(in_shape[-1])
        return {"norm": norm, "linear": layers.init_linear(key, in_shape[-1], self.classes)}, stats

    def apply(self, params: dict, stats: dict, x: Array, mode: Mode) -> tuple[Array, dict]:
        """Logits of relu(bn(x))."""
        x, stats = layers.batch_norm(params["norm"], stats, x, mode)
        return resnet.Classifier(self.classes).apply(params["linear"], {}, nn.relu(x), mode)[0], stats


def preact_resnet(*, depth: int, classes: int, width: int = 16) -> tuple[UnitLike, ...]:
    """Units of a pre-activation ResNet for images of any size and number of channels.

    Args:
      depth: Layers, 6n+2 of basic blocks, or from 164 on 9n+2 of bottlenecks.
      classes: Of the images.
      width: Channels of the stem, and inside the first group's blocks.

    Returns:
      The units, stem to head.

    Raises:
      BadInput: Another depth, or a width or number of classes below 1.
    """
    kind: resnet.Kind = "bottleneck" if depth >= BOTTLENECKS_FROM else "basic"
    blocks = resnet.blocks_per_group(depth, 9 if kind == "bottleneck" else 6, 2)
    resnet.check_sizes("width", width, classes)
    block = partial(PreActivationBlock, kind, dropout=0.0)
    return (Stem(width), *resnet.groups(block, width, [blocks] * 3), PreActivationHead(classes))


def wide_resnet(*, depth: int, widen: int, classes: int, dropout: float = 0.0) -> tuple[UnitLike, ...]:
    """Units of WRN-depth-widen for images of any size and number of channels.

    Args:
      depth: Layers, 6n+4, of basic blocks.
      widen: Channels of the groups over 16, 32 and 64.
      classes: Of the images.
      dropout: Probability that a value between the two convolutions of a block is set to 0, in training.

    Returns:
      The units, stem to head.

    Raises:
      BadInput: Another depth, a widen or number of classes below 1, or a dropout outside [0, 1).
    """
    blocks = resnet.blocks_per_group(depth, 6, 4)
    resnet.check_sizes("widen", widen, classes)
    if not 0 <= dropout < 1:
        raise BadInput(f"model.dropout={dropout}: expected a probability 0 <= dropout < 1; the paper uses 0 or 0.3")
    block = partial(PreActivationBlock, "basic", dropout=dropout)
    return (Stem(16), *resnet.groups(block, 16 * widen, [blocks] * 3), PreActivationHead(classes))
