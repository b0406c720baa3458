"""Augmentation inside the jitted step, from (seed, step, example) alone, so that any step can be replayed and does not
depend on which device an example lands on."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from lpjax.config import DataConfig


def augment(
    images: UInt8[Array, "b h w c"], index: Int[Array, " b"], key: PRNGKeyArray, config: DataConfig
) -> UInt8[Array, "b h w c"]:
    """Random crop of the image padded by `config.crop` zero pixels, and random left-right flip if `config.flip`.

    `key` is the step's; example i of the training set draws from fold_in(key, i).
    """
    if not config.crop and not config.flip:
        return images
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    draws = jax.vmap(lambda k: jax.random.randint(k, (3,), 0, jnp.array([2 * config.crop + 1] * 2 + [2])))(keys)
    _, height, width, _ = images.shape
    columns = jnp.broadcast_to(jnp.arange(width)[None], (images.shape[0], width))
    if config.flip:
        columns = jnp.where(draws[:, 2:] == 1, width - 1 - columns, columns)
    rows = draws[:, :1] + jnp.arange(height)[None]
    columns = draws[:, 1:2] + columns
    pad = (config.crop, config.crop)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    return padded[jnp.arange(images.shape[0])[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(
    images: UInt8[Array, "b h w c"], mean: Float[Array, " c"], std: Float[Array, " c"]
) -> Float[Array, "b h w c"]:
    """Pixels scaled to 0..1, then to the training set's mean 0 and standard deviation 1 per channel."""
    return (images.astype(float) / 255 - mean[None, None, None]) / std[None, None, None]
