"""Layers: pure functions on [b, ..., C] arrays, and the parameters they take.

Weights are in the dtype of `float` (float32, or float64 under `jax_enable_x64`).  A weight that decays is called
`kernel`; scales, biases and statistics have other names (see `state.optim.decayed`).  A layer computes in the dtype of
its input, to which it casts its weights; statistics and sums over many values are taken in single precision at least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from lpjax.errors import BadInput
from lpjax.nn.chain import Mode, Shape
from lpjax.nn.conv import COSTLY, conv

BATCH_NORM_EPSILON = 1e-5

Stats = dict[str, Float[Array, " c"]]


def he_normal(key: PRNGKeyArray, shape: Shape) -> Array:
    """Normal weights of variance 2 / fan_in, fan_in being the product of all axes but the last (arXiv:1502.01852)."""
    flat = jax.random.normal(key, (math.prod(shape),), float)  # the same numbers, and XLA compiles them much faster
    return flat.reshape(shape) * math.sqrt(2.0 / math.prod(shape[:-1]))


def check_stride(in_shape: Shape, stride: int) -> None:
    """Refuse a map that is smaller than the stride it is to be taken at.

    Args:
      in_shape: Of the map, [H, W, C].
      stride: In pixels.

    Raises:
      BadInput: H or W is less than the stride.
    """
    if min(in_shape[:2]) < stride:
        raise BadInput(
            f"a map of {in_shape[0]}x{in_shape[1]} cannot be taken at stride {stride}: expected at least "
            f"{stride}x{stride}; use larger images or a network that halves them less often"
        )


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum over 3x3 windows at stride 2, padded like `conv`: output size ceil(size / 2)."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def shortcut(x: Float[Array, "b h w c"], features: int, stride: int) -> Float[Array, "b h2 w2 f"]:
    """x without parameters at another shape: every stride-th pixel, new channels 0 (option A of arXiv:1512.03385)."""
    return padded(x[:, ::stride, ::stride], features)


def padded(x: Float[Array, "*b c"], features: int) -> Float[Array, "*b f"]:
    """x with new channels of zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, features - x.shape[-1])])


def pooled(x: Float[Array, "b h w c"], size: Sequence[int]) -> Float[Array, "b h2 w2 c"]:
    """Average over windows of ceil(H / h) x ceil(W / w) pixels that do not overlap.

    Args:
      x: Maps.
      size: (h, w) of the output; an axis of x that is not longer stays as it is.  Windows at the right and lower edge
        may be smaller than the others.

    Returns:
      The means of the windows.

    Raises:
      BadInput: No windows give this size.
    """
    for axis, wanted in ((1, size[0]), (2, size[1])):
        length = x.shape[axis]
        window = -(-length // wanted)
        if length <= wanted:
            continue
        if -(-length // window) != wanted:
            raise BadInput(f"{length} pixels cannot be pooled to {wanted}: expected ceil({length} / n) for some n")
        pads = [(0, 0)] * 4
        pads[axis] = (0, wanted * window - length)
        sums = jnp.pad(x, pads).reshape(*x.shape[:axis], wanted, window, *x.shape[axis + 1 :]).sum(axis + 1)
        counts = jnp.minimum(window, length - window * jnp.arange(wanted)).astype(x.dtype)
        x = sums / counts.reshape([-1 if i == axis else 1 for i in range(4)])
    return x


def spread(x: Float[Array, "b h2 w2 c"], size: Sequence[int]) -> Float[Array, "b h w c"]:
    """Repeat each pixel over its window: the inverse of `pooled` on maps that are constant in its windows.

    Args:
      x: Maps.
      size: (H, W) of the output; an axis of x that is not shorter stays as it is.

    Returns:
      The larger maps.
    """
    for axis, wanted in ((1, size[0]), (2, size[1])):
        if x.shape[axis] < wanted:
            x = jnp.repeat(x, -(-wanted // x.shape[axis]), axis=axis)
            x = lax.slice_in_dim(x, 0, wanted, axis=axis)
    return x


def dropout(x: Float[Array, "b ..."], rate: float, mode: Mode, layer: int = 0) -> Float[Array, "b ..."]:
    """Set each value to 0 with probability `rate`, and divide the others by 1 - rate.

    Args:
      x: Activations.
      rate: In [0, 1).
      mode: Without `train` or without `keys` nothing is random, and x is returned.
      layer: Number of the dropout in its unit.  The mask is drawn from (the example's key, the unit's position, layer).

    Returns:
      As x.
    """
    if not mode.train or mode.keys is None or rate == 0:
        return x

    def mask(key: PRNGKeyArray) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, mode.position), layer)
        return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(mode.keys), x / (1 - rate), jnp.zeros((), x.dtype))


def at_least_float32(x: Array) -> Array:
    """x in single precision at least."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def _per_channel(values: Float[Array, " c"], x: Array) -> Array:
    """values, to be broadcast against x."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def affine(params: dict[str, Float[Array, " c"]], x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x * scale + bias for each channel."""
    y = at_least_float32(x) * _per_channel(params["scale"], x) + _per_channel(params["bias"], x)
    return y.astype(x.dtype)


def _scaled(
    x: Float[Array, "*b c"], stats: Stats, scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> Float[Array, "*b c"]:
    """(x - mean) / std * scale + bias, as one multiply-add in single precision at least."""
    factor = lax.rsqrt(stats["var"] + epsilon) * scale
    shift = bias - stats["mean"] * factor
    return (at_least_float32(x) * _per_channel(factor, x) + _per_channel(shift, x)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
    x: Float[Array, "*b c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    axes: tuple[str, ...],
    epsilon: float,
) -> tuple[Float[Array, "*b c"], Stats]:
    """`_scaled` by the batch's own statistics, and these, through which no gradient comes back.

    The variance is found in one pass, E[x^2] - E[x]^2 clamped at 0.  Moments are averaged over `axes` (one pmean), so
    that a batch split over devices is normalised like the whole batch.  For the backward pass (one pmean as well) x is
    kept and nothing else of its size; autodiff would keep two or three arrays.
    """
    return _normalise_forward(x, scale, bias, axes, epsilon)[0]


def _normalise_forward(x: Array, scale: Array, bias: Array, axes: tuple[str, ...], epsilon: float) -> tuple[Any, Any]:
    rows = tuple(range(x.ndim - 1))
    values = at_least_float32(x)
    sums = values.mean(rows), jnp.square(values).mean(rows)
    mean, square = lax.pmean(sums, axes) if axes else sums
    stats = checkpoint_name({"mean": mean, "var": jnp.maximum(square - jnp.square(mean), 0.0)}, COSTLY)
    return (_scaled(x, stats, scale, bias, epsilon), stats), (x, stats, scale)


def _normalise_backward(
    axes: tuple[str, ...], epsilon: float, saved: Any, cotangents: Any
) -> tuple[Array, Array, Array]:
    (x, stats, scale), (g, _) = saved, cotangents
    dtype, x, g = x.dtype, at_least_float32(x), at_least_float32(g)
    rows = tuple(range(x.ndim - 1))
    inverse = lax.rsqrt(stats["var"] + epsilon)
    sums = g.mean(rows), (g * (x - _per_channel(stats["mean"], x))).mean(rows) * inverse
    means = lax.pmean(sums, axes) if axes else sums
    # scale / std * (g - E[g] - xhat E[g xhat]), as two multiply-adds
    factor = scale * inverse
    slope = -factor * inverse * means[1]
    shift = -factor * means[0] - slope * stats["mean"]
    dx = g * _per_channel(factor, x) + x * _per_channel(slope, x) + _per_channel(shift, x)
    count = x.size / x.shape[-1]
    return dx.astype(dtype), sums[1] * count, sums[0] * count


_normalise.defvjp(_normalise_forward, _normalise_backward)


def init_stats(channels: int) -> Stats:
    """Statistics before any batch: mean 0, variance 1, each [channels]."""
    return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}


def batch_norm(
    params: dict[str, Float[Array, " c"]],
    stats: Stats,
    x: Float[Array, "*b c"],
    mode: Mode,
    epsilon: float = BATCH_NORM_EPSILON,
) -> tuple[Float[Array, "*b c"], Stats]:
    """Batch normalisation (arXiv:1502.03167) with a learned scale and bias per channel.

    Args:
      params: "scale" and "bias".
      stats: "mean" and "var", which are used if this is not training.
      x: Activations.
      mode: In training the batch's own statistics are used, averaged over `mode.axes` (one pmean).
      epsilon: Added to the variance.

    Returns:
      The normalised activations, and the statistics used.
    """
    if mode.train:
        return _normalise(x, params["scale"], params["bias"], mode.axes, epsilon)
    return _scaled(x, stats, params["scale"], params["bias"], epsilon), stats


def init_batch_norm(channels: int) -> tuple[dict[str, Float[Array, " c"]], Stats]:
    """Parameters of `batch_norm`, scale 1 and bias 0, each [channels], and its statistics."""
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}, init_stats(channels)


def init_conv(key: PRNGKeyArray, size: int, channels: int, features: int) -> dict[str, Array]:
    """Parameters of a convolution: a size x size kernel from `channels` to `features`."""
    return {"kernel": he_normal(key, (size, size, channels, features))}


def init_conv_norm(key: PRNGKeyArray, size: int, channels: int, features: int) -> tuple[dict, dict]:
    """Parameters and statistics of `conv_norm`: a size x size kernel from `channels` to `features`."""
    norm, stats = init_batch_norm(features)
    return {"conv": init_conv(key, size, channels, features), "norm": norm}, stats


def conv_norm(params: dict, stats: Stats, x: Array, mode: Mode, stride: int = 1) -> tuple[Array, Stats]:
    """Convolution without bias, then batch normalisation."""
    return batch_norm(params["norm"], stats, conv(x, params["conv"]["kernel"], stride), mode)


def init_linear(key: PRNGKeyArray, channels: int, features: int) -> dict[str, Array]:
    """Parameters of `linear`."""
    return {"kernel": he_normal(key, (channels, features)), "bias": jnp.zeros(features)}


def linear(params: dict[str, Array], x: Float[Array, "*b c"]) -> Float[Array, "*b f"]:
    """x @ kernel + bias."""
    return x @ params["kernel"].astype(x.dtype) + _per_channel(params["bias"], x).astype(x.dtype)


@dataclass(frozen=True)
class Standardise:
    """Parameter-free standardisation, put at the end of every stage but the last so that a violation has a scale."""

    name = "standardise"

    def init(self, key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, Stats]:
        """No parameters; the statistics of the channels."""
        return {}, init_stats(in_shape[-1])

    def apply(self, params: dict, stats: Stats, x: Array, mode: Mode) -> tuple[Array, Stats]:
        """`batch_norm` with scale 1 and bias 0: mean 0 and variance 1 per channel (the last axis of x)."""
        one = jnp.ones_like(at_least_float32(x), shape=x.shape[-1:])
        return batch_norm({"scale": one, "bias": jnp.zeros_like(one)}, stats, x, mode)


STANDARDISE = Standardise()
