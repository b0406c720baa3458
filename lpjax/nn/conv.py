"""2-D convolution, with the gradients that are fast on the platform."""

import jax
from jaxtyping import Array, Float

from lpjax.nn import conv_cpu


def conv(x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c f"], stride: int) -> Float[Array, "b h2 w2 f"]:
    """Convolve images with a kernel of odd size k, (k-1)/2 zeros padded on each side.

    Args:
      x: Images.
      kernel: Cast to the dtype of x.
      stride: In pixels, on both axes.

    Returns:
      Maps of size ceil(size / stride).
    """
    form = conv_cpu.conv if jax.default_backend() == "cpu" else conv_cpu.direct
    return form(x, kernel.astype(x.dtype), stride)
