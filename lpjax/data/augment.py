"""Augmentation inside the jitted step.

It depends on (seed, step, example) alone, so that any step can be replayed, on whichever device an example lands.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from lpjax.config.schema import DataConfig

_CROP_AND_FLIP, _CUTOUT, _SHARE, _PARTNER = (2**32 - n for n in range(1, 5))
"""What is drawn from an example's key; units of a network count from 0."""


def augment(images: UInt8[Array, "b h w c"], keys: Key[Array, " b"], config: DataConfig) -> UInt8[Array, "b h w c"]:
    """Random crop of the images padded by `config.crop` zero pixels, and random left-right flip if `config.flip`.

    Args:
      images: As stored.
      keys: Of the examples in this step.
      config: Says what is done.
    """
    if not config.crop and not config.flip:
        return images
    draws = _draw(keys, _CROP_AND_FLIP, jnp.array([2 * config.crop + 1] * 2 + [2]))
    _, height, width, _ = images.shape
    columns = jnp.broadcast_to(jnp.arange(width)[None], (images.shape[0], width))
    if config.flip:
        columns = jnp.where(draws[:, 2:] == 1, width - 1 - columns, columns)
    rows = draws[:, :1] + jnp.arange(height)[None]
    columns = draws[:, 1:2] + columns
    pad = (config.crop, config.crop)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    return padded[jnp.arange(images.shape[0])[:, None, None], rows[:, :, None], columns[:, None, :]]


def _draw(keys: Key[Array, " b"], what: int, limits: Int[Array, " n"]) -> Int[Array, "b n"]:
    """n random integers for each example, from 0 to below the limits; `what` tells draws of one key apart."""
    return jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, what), limits.shape, 0, limits))(keys)


def cut_out(x: Float[Array, "b h w c"], keys: Key[Array, " b"], size: int) -> Float[Array, "b h w c"]:
    """Cutout (arXiv:1708.04552): a square of each image is set to 0, the mean.

    The square's centre is anywhere in the image, so that it may hang over the edge.

    Args:
      x: Normalised images.
      keys: Of the examples in this step.
      size: Side of the square in pixels; 0 for none.
    """
    if not size:
        return x
    _, height, width, _ = x.shape
    corner = _draw(keys, _CUTOUT, jnp.array([height, width])) - size // 2
    rows, columns = jnp.arange(height)[None] - corner[:, :1], jnp.arange(width)[None] - corner[:, 1:]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None]
    return jnp.where(inside[..., None], jnp.zeros((), x.dtype), x)


def normalise(
    images: UInt8[Array, "b h w c"], mean: Float[Array, " c"], std: Float[Array, " c"]
) -> Float[Array, "b h w c"]:
    """Pixels scaled to 0..1, then to the training set's mean 0 and standard deviation 1 per channel."""
    return (images.astype(float) / 255 - mean[None, None, None]) / std[None, None, None]


def mixed_share(keys: Key[Array, " b"], alpha: float) -> Float[Array, " b"]:
    """What each example keeps of itself in mixup, from Beta(alpha, alpha).

    (1 + t / sqrt(n + t^2)) / 2 for t of Student's distribution with n = 2 alpha degrees of freedom, by Bailey's polar
    method (Mathematics of Computation 62, 1994): no loop, unlike rejection.
    """
    u, v = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _SHARE), (2,), float))(keys).T
    cosine, power = jnp.cos(2 * jnp.pi * v), u ** (1 / alpha)
    return (1 + cosine / jnp.sqrt(jnp.square(cosine) + power / (1 - power))) / 2


def partner_keys(keys: Key[Array, " b"]) -> Key[Array, " b"]:
    """Keys for the augmentation of what each example is mixed with."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _PARTNER))(keys)
