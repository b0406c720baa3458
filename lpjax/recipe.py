"""What every method trains with: the same input, optimisers and penalty schedule, made once from the configuration."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lpjax import lagrangian, optim
from lpjax.config import Config
from lpjax.data.augment import augment, normalise
from lpjax.data.feed import Batch
from lpjax.data.source import Dataset


@dataclass(frozen=True, eq=False)
class Recipe:
    """The parts of training that do not depend on the method.

    num_examples: N, of the training set.
    steps_per_epoch: complete batches of a pass.
    normalised: uint8 images [b, H, W, C] -> the network's input.
    network_input: (batch, the run's key, step) -> the input of a training step, augmented and normalised.
    learning_rate: of the stages, by the step.
    optimizer, aux_optimizer: of the stages and of the AuxNet.
    penalty_coef: beta, by the step.
    """

    num_examples: int
    steps_per_epoch: int
    normalised: Callable[[Array], Float[Array, "b h w c"]]
    network_input: Callable[[Batch, PRNGKeyArray, Array], Float[Array, "b h w c"]]
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    aux_optimizer: optax.GradientTransformation
    penalty_coef: Callable[[Array], Array]


def make_recipe(config: Config, dataset: Dataset, *, steps_per_epoch: int) -> Recipe:
    """The recipe of a configuration on a data set."""
    mean, std = dataset.mean.astype(float), dataset.std.astype(float)

    def normalised(images: Array) -> Float[Array, "b h w c"]:
        return normalise(images, jnp.asarray(mean, float), jnp.asarray(std, float))

    def network_input(batch: Batch, key: PRNGKeyArray, step: Array) -> Float[Array, "b h w c"]:
        return normalised(augment(batch.image, batch.index, jax.random.fold_in(key, step), config.data))

    rate = optim.make_schedule(config.optimizer, steps_per_epoch=steps_per_epoch, num_epochs=config.num_epochs)
    aux_rate = optim.make_schedule(
        config.aux_optimizer,
        steps_per_epoch=steps_per_epoch * config.aux.inner_steps,
        num_epochs=config.num_epochs,
    )
    beta = lagrangian.penalty_schedule(config.initial_penalty_coef, config.penalty.growth, config.penalty.maximum)
    return Recipe(
        num_examples=len(dataset.train_labels),
        steps_per_epoch=steps_per_epoch,
        normalised=normalised,
        network_input=network_input,
        learning_rate=rate,
        optimizer=optim.make_optimizer(config.optimizer, rate),
        aux_optimizer=optim.make_optimizer(config.aux_optimizer, aux_rate),
        penalty_coef=lambda step: beta(step / steps_per_epoch).astype(float),
    )
