"""Layers: pure functions on [b, H, W, C] arrays, and the parameters they take.

Weights are in the dtype of `float` (float32, or float64 under `jax_enable_x64`).  A weight that decays is called
`kernel`; scales, biases and statistics have other names (see `optim.decayed`).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from lpjax.chain import Mode, Shape, Unit

BATCH_NORM_EPSILON = 1e-5
_NHWC = ("NHWC", "HWIO", "NHWC")

Stats = dict[str, Float[Array, " c"]]


def he_normal(key: PRNGKeyArray, shape: Shape) -> Array:
    """Normal weights of variance 2 / fan_in, fan_in being the product of all axes but the last (arXiv:1502.01852)."""
    return jax.random.normal(key, shape, float) * math.sqrt(2.0 / math.prod(shape[:-1]))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c f"], stride: int) -> Float[Array, "b h2 w2 f"]:
    """2-D convolution with SAME padding, output size ceil(size / stride).

    On CPU the gradients are written as convolutions in canonical layout: XLA rewrites the ones that autodiff makes
    only at the top level of a program, and inside `scan` or `switch` they fall to a loop 15 to 35 times slower.
    Elsewhere autodiff's own form is kept.
    """
    return _conv(x, kernel, stride)


def _conv(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=_NHWC)


def _conv_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if jax.default_backend() != "cpu":
        return jax.vjp(lambda x, kernel: _conv(x, kernel, stride), x, kernel)[1](g)
    low = [lo for lo, _ in lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")]
    size = [(x.shape[i + 1], kernel.shape[i], (g.shape[i + 1] - 1) * stride) for i in range(2)]
    # Input: the cotangent, dilated by the stride, through the flipped kernel with its channel axes swapped.
    dx = lax.conv_general_dilated(
        g,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        [(k - 1 - lo, n - 1 - span + lo) for lo, (n, k, span) in zip(low, size, strict=True)],
        lhs_dilation=(stride, stride),
        dimension_numbers=_NHWC,
    )
    # Filter: the channels of x as the batch, the cotangent as a kernel over the examples, dilated by the stride.
    dk = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        [(lo, k - n - lo + span) for lo, (n, k, span) in zip(low, size, strict=True)],
        rhs_dilation=(stride, stride),
        dimension_numbers=_NHWC,
    )
    return dx, dk.transpose(1, 2, 0, 3)


conv.defvjp(_conv_forward, _conv_backward)


def standardise(x: Float[Array, "b h w c"], stats: Stats, mode: Mode) -> tuple[Float[Array, "b h w c"], Stats]:
    """x with mean 0 and variance 1 per channel, and the statistics used.

    The batch's statistics are found in one pass, E[x^2] - E[x]^2 clamped at 0, and averaged over `mode.axes`
    (one pmean), so that a batch split over devices is normalised like the whole batch.
    """
    if mode.train:
        moments = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))
        mean, square = lax.pmean(moments, mode.axes) if mode.axes else moments
        stats = {"mean": mean, "var": jnp.maximum(square - jnp.square(mean), 0.0)}
    inverse = lax.rsqrt(stats["var"] + BATCH_NORM_EPSILON)
    shift = -stats["mean"] * inverse
    return x * inverse[None, None, None] + shift[None, None, None], stats


def init_stats(channels: int) -> Stats:
    return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}


def batch_norm(
    params: dict[str, Float[Array, " c"]], stats: Stats, x: Float[Array, "b h w c"], mode: Mode
) -> tuple[Float[Array, "b h w c"], Stats]:
    """Batch normalisation (arXiv:1502.03167): `standardise`, then a learned scale and bias per channel."""
    x, stats = standardise(x, stats, mode)
    return x * params["scale"][None, None, None] + params["bias"][None, None, None], stats


def init_batch_norm(channels: int) -> tuple[dict[str, Float[Array, " c"]], Stats]:
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}, init_stats(channels)


def init_conv_norm(key: PRNGKeyArray, size: int, channels: int, features: int) -> tuple[dict, dict]:
    """Parameters and statistics of `conv_norm`: a size x size kernel from `channels` to `features`."""
    norm, stats = init_batch_norm(features)
    return {"conv": {"kernel": he_normal(key, (size, size, channels, features))}, "norm": norm}, stats


def conv_norm(params: dict, stats: Stats, x: Array, mode: Mode, stride: int = 1) -> tuple[Array, Stats]:
    """Convolution without bias, then batch normalisation."""
    return batch_norm(params["norm"], stats, conv(x, params["conv"]["kernel"], stride), mode)


def _init_standardise(key: PRNGKeyArray, in_shape: Shape) -> tuple[dict, Stats]:
    return {}, init_stats(in_shape[-1])


def _apply_standardise(params: dict, stats: Stats, x: Array, mode: Mode) -> tuple[Array, Stats]:
    return standardise(x, stats, mode)


STANDARDISE = Unit("standardise", _init_standardise, _apply_standardise)
"""Parameter-free standardisation, put at the end of every stage but the last so that a violation has a scale."""
