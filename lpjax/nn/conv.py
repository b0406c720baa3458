"""2-D convolution, and its gradients in the forms that are fast on XLA's CPU back end.

There XLA rewrites the convolutions that autodiff makes only at the top level of a program: inside `scan` or `switch`
they fall to a loop 15 to 35 times slower.  So the gradient of the input is written as a convolution in canonical
layout, and that of the kernel as matrix products, which are faster than any form of convolution that was tried.  Where
there are many channels both are computed by `winograd`, as is the convolution itself; where there are few, a
convolution gives several columns at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lpjax.nn import winograd

COSTLY = "costly"
"""Name, for policies of `jax.checkpoint`, of what takes long to compute again for its size."""

_NHWC = ("NHWC", "HWIO", "NHWC")

CHUNK_BYTES = 3 << 20
"""Of copies of images that are made at a time: they stay in a core's share of the cache."""

FEATURES = 32
"""Fewer make XLA's convolution inefficient: with 16 it is 1.4 times faster for two columns at once than for one,
although a third more is computed."""

WINOGRAD_CHANNELS = 64
WINOGRAD_GRADIENT_CHANNELS = 128
"""From how many channels, before and behind, `winograd` is the faster one, for a convolution and a kernel's gradient:
1.4 to 1.6 times and 1.3 times on a core with 512-bit vectors."""


def conv(x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c f"], stride: int) -> Float[Array, "b h2 w2 f"]:
    """Convolve images with a kernel of odd size k, (k-1)/2 zeros padded on each side.

    Args:
      x: Images.
      kernel: Cast to the dtype of x.
      stride: In pixels, on both axes.

    Returns:
      Maps of size ceil(size / stride).
    """
    form = _cpu_conv if jax.default_backend() == "cpu" else direct
    return checkpoint_name(form(x, kernel.astype(x.dtype), stride), COSTLY)


def direct(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution as XLA has it, on every platform."""
    pads = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_NHWC)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_conv(x: Array, kernel: Array, stride: int) -> Array:
    """`conv` in the fast forms where it is differentiated.

    What is only run is `direct`: its operations are counted, and it may be exported to other platforms.
    """
    return direct(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _training_conv(x: Array, kernel: Array, stride: int) -> Array:
    """`_cpu_conv` in a training step."""
    if _is_winograds(kernel, stride, WINOGRAD_CHANNELS):
        return winograd.convolution(x, kernel, _winograd_chunk(x, kernel.shape[-1]))
    (_, width, _, features), columns = kernel.shape, 1
    while stride == 1 and width > 1 and 2 * columns * features <= FEATURES and x.shape[2] % (2 * columns) == 0:
        columns *= 2
    return direct(x, kernel, stride) if columns == 1 else _conv_by_columns(x, kernel, columns)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _training_conv(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # The cotangent, dilated by the stride, through the flipped kernel with its channel axes swapped.
    transposed = kernel[::-1, ::-1].swapaxes(2, 3)
    if stride == 1:
        dx = _training_conv(g, transposed, 1)  # which has a derivative, for those of the backward pass
    else:
        size = [(x.shape[i + 1], kernel.shape[i], (g.shape[i + 1] - 1) * stride) for i in range(2)]
        pads = [(k // 2, n - 1 - span + k // 2) for n, k, span in size]
        dx = lax.conv_general_dilated(
            g, transposed, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=_NHWC
        )
    if _is_winograds(kernel, stride, WINOGRAD_GRADIENT_CHANNELS):
        return dx, winograd.kernel_gradient(x, g, _winograd_chunk(x, g.shape[-1]))
    return dx, _kernel_gradient(x, g, (kernel.shape[0], kernel.shape[1]), stride)


_cpu_conv.defvjp(_forward, _backward)
_training_conv.defvjp(_forward, _backward)


def _conv_by_columns(x: Array, kernel: Array, columns: int) -> Array:
    """`direct` of stride 1, so many neighbouring columns of the output side by side as features.

    What is computed at every `columns`-th column has the kernel once for each of them, each time shifted by one.
    """
    shifts = [((0, 0), (i, columns - 1 - i), (0, 0), (0, 0)) for i in range(columns)]
    kernels = jnp.concatenate([jnp.pad(kernel, shift) for shift in shifts], -1)
    pads = [(size // 2, size // 2) for size in kernel.shape[:2]]
    y = lax.conv_general_dilated(x, kernels, (1, columns), pads, dimension_numbers=_NHWC)
    return y.reshape(*y.shape[:2], x.shape[2], kernel.shape[-1])


def _is_winograds(kernel: Array, stride: int, channels: int) -> bool:
    """Whether `winograd` is the form for a convolution, from so many channels on: not in half precision, too coarse."""
    height, width, before, behind = kernel.shape
    return (height, width, stride) == (3, 3, 1) and min(before, behind) >= channels and kernel.dtype.itemsize >= 4


def _chunk(batch: int, image_bytes: int) -> int:
    """How many images to take at a time, a divisor of the batch."""
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n * image_bytes <= CHUNK_BYTES), default=1)


def _winograd_chunk(x: Array, features: int) -> int:
    batch, height, width, channels = x.shape
    tiles = -(-height // 2) * -(-width // 2)
    return _chunk(batch, 16 * tiles * (channels + features) * x.dtype.itemsize)


def _kernel_gradient(
    x: Float[Array, "b h w c"], g: Float[Array, "b h2 w2 f"], size: tuple[int, int], stride: int
) -> Float[Array, "kh kw c f"]:
    """Gradient of `direct` at its kernel of this `size` for the cotangent g, a few examples at a time.

        dk[i, j] = sum over y, x of  x[y + i - p, x + j - p]^T g[y, x]         p = (k - 1) / 2
                 = sum over y, x of  x[y, x + j - p]^T g[y - i + p, x]         at stride 1

    In the second form kw copies of x shifted along the width and kh of g along the height, side by side as channels,
    give all taps in one product of [.., kw c] and [.., kh f]; otherwise all kh kw copies are of x.
    """
    (kh, kw), (batch, height, width, features), channels = size, g.shape, x.shape[-1]
    from_g = kh if stride == 1 else 1
    from_x = kh // from_g
    chunk = _chunk(batch, height * width * (from_x * kw * channels + from_g * features) * x.dtype.itemsize)

    def shifted(x: Array, down: int, across: int, stride: int) -> Array:
        x = jnp.pad(x, ((0, 0), (down // 2, down // 2), (across // 2, across // 2), (0, 0)))
        rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
        taps = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(down) for j in range(across)]
        return jnp.concatenate(taps, -1).reshape(-1, down * across * x.shape[-1])

    dtype = jnp.dtype("float32") if x.dtype.itemsize < 4 else x.dtype  # of the sums

    def product(x: Array, g: Array) -> Array:
        return jnp.matmul(shifted(x, from_x, kw, stride).T, shifted(g, from_g, 1, 1), preferred_element_type=dtype)

    taps = winograd.sum_of_chunks(product, x, g, chunk).reshape(from_x, kw, channels, from_g, features)
    taps = taps[..., ::-1, :]  # the copy of g that is furthest down belongs to the first row of the kernel
    return taps.transpose(0, 3, 1, 2, 4).reshape(kh, kw, channels, features).astype(x.dtype)
