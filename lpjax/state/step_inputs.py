"""What every method trains with: the same input, optimisers and penalty schedule, made once from the configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from lpjax.config.schema import Config
from lpjax.data.augment import augment, cut_out, normalise
from lpjax.data.batch import Batch
from lpjax.state import optim, step_inputs


@dataclass(frozen=True, eq=False)
class Recipe:
    """The parts of training that do not depend on the method.

    num_examples: N, of the training set.
    steps_per_epoch: complete batches of a pass.
    normalised: uint8 images [b, H, W, C] -> the network's input.
    network_input: (batch, `example_keys`) -> the input of a training step, augmented and normalised.
    learning_rate: of the stages, by the step.
    optimizer, aux_optimizer: of the stages and of the AuxNet.
    penalty_coef: beta, by the step.
    """

    num_examples: int
    steps_per_epoch: int
    normalised: Callable[[Array], Float[Array, "b h w c"]]
    network_input: Callable[[Batch, Key[Array, " b"]], Float[Array, "b h w c"]]
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    aux_optimizer: optax.GradientTransformation
    penalty_coef: Callable[[Array], Array]


def example_keys(key: PRNGKeyArray, step: Array, index: Int[Array, " b"]) -> Key[Array, " b"]:
    """One random key an example of a step, from (the run's key, step, position in the training set), whatever device
    the example is on."""
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def make_recipe(
    config: Config, mean: np.ndarray, std: np.ndarray, *, num_examples: int, steps_per_epoch: int
) -> Recipe:
    """The recipe of a configuration on a training set of `num_examples` with these channel moments."""

    def normalised(images: Array) -> Float[Array, "b h w c"]:
        return normalise(images, jnp.asarray(mean, float), jnp.asarray(std, float))

    def network_input(batch: Batch, keys: Key[Array, " b"]) -> Float[Array, "b h w c"]:
        return cut_out(normalised(augment(batch.image, keys, config.data)), keys, config.data.cutout)

    rate = optim.make_schedule(config.optimizer, steps_per_epoch=steps_per_epoch, num_epochs=config.num_epochs)
    aux_rate = optim.make_schedule(
        config.aux_optimizer,
        steps_per_epoch=steps_per_epoch * config.aux.inner_steps,
        num_epochs=config.num_epochs,
    )
    beta = step_inputs.penalty_schedule(config.initial_penalty_coef, config.penalty.growth, config.penalty.maximum)
    return Recipe(
        num_examples=num_examples,
        steps_per_epoch=steps_per_epoch,
        normalised=normalised,
        network_input=network_input,
        learning_rate=rate,
        optimizer=optim.make_optimizer(config.optimizer, rate),
        aux_optimizer=optim.make_optimizer(config.aux_optimizer, aux_rate),
        penalty_coef=lambda step: beta(step / steps_per_epoch).astype(float),
    )


def penalty_schedule(initial: float, growth: float, maximum: float | None) -> Callable[[Array | float], Array]:
    """beta by the epoch (which may be fractional): initial * growth ** epoch, at most `maximum` if there is one."""
    bound = math.inf if maximum is None else maximum
    return lambda epoch: jnp.minimum(bound, initial * jnp.power(growth, epoch))
