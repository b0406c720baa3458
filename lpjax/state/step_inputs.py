"""What a step is fed, whatever the method: augmented images, optimisers with their learning rates, and beta."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from lpjax.config.schema import Config
from lpjax.data.augment import augment, cut_out, mixed_share, normalise, partner_keys
from lpjax.data.batch import Batch
from lpjax.nn.losses import CLASSIFICATION, Targets, Task
from lpjax.state import optim


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What a step is fed, made once from the configuration.

    Attributes:
      num_examples: N, of the training set.
      steps_per_epoch: Complete batches of a pass.
      normalised: uint8 images [b, H, W, C] or tokens [b, T] -> the network's input.
      network_input: (batch, `example_keys`) -> the input of a training step, augmented, normalised and mixed.
      learning_rate: Of the stages, by the step.
      optimizer: Of the stages.
      aux_optimizer: Of the AuxNet.
      initial_penalty_coef: beta of the first step.
      penalty_coef: beta, by the step.
    """

    num_examples: int
    steps_per_epoch: int
    normalised: Callable[[Array], Float[Array, "b ..."]]
    network_input: Callable[[Batch, Key[Array, " b"]], Float[Array, "b ..."]]
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    aux_optimizer: optax.GradientTransformation
    initial_penalty_coef: float
    penalty_coef: Callable[[Array], Array]


def example_keys(key: PRNGKeyArray, step: Array, index: Int[Array, " b"]) -> Key[Array, " b"]:
    """One random key an example of a step, whatever device the example is on.

    Args:
      key: The run's.
      step: In which the examples entered the network.
      index: Their positions in the training set.
    """
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def paired(config: Config, batch: Batch) -> Batch:
    """With mixup give each example the partner that is as far from the batch's end as it is from its beginning.

    Under `shard_map`.  The order of examples is random, and so are the pairs, which do not depend on the mesh.  Two
    ppermutes over the mesh, of images and labels.
    """
    if not config.data.mixup:
        return batch
    S, D = config.mesh_shape
    across = [(device, S * D - 1 - device) for device in range(S * D)]
    image, label = (lax.ppermute(x[::-1], ("data", "stage"), across) for x in (batch.image, batch.label))
    return replace(batch, partner_image=image, partner_label=label)


def make_targets(
    task: Task,
    config: Config,
    keys: Key[Array, " b"],
    labels: Int[Array, "b ..."],
    partners: Int[Array, "b ..."] | None,
) -> Targets:
    """What a network learns to say of examples.

    Args:
      task: What it learns.
      config: The configuration.
      keys: Of the examples.
      labels: Likewise.
      partners: Labels of what they are mixed with; None without mixup.
    """
    share = None if partners is None else mixed_share(keys, config.data.mixup)
    return Targets(labels, config.data.label_smoothing, partners, share, task)


def _image_inputs(config: Config, mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """`StepInputs.normalised` and `network_input` of images."""

    def normalised(images: Array) -> Float[Array, "b h w c"]:
        return normalise(images, jnp.asarray(mean, float), jnp.asarray(std, float))

    def augmented(images: Array, keys: Key[Array, " b"]) -> Float[Array, "b h w c"]:
        return cut_out(normalised(augment(images, keys, config.data)), keys, config.data.cutout)

    def network_input(batch: Batch, keys: Key[Array, " b"]) -> Float[Array, "b h w c"]:
        x = augmented(batch.image, keys)
        if batch.partner_image is None:
            return x
        share = mixed_share(keys, config.data.mixup)[:, None, None, None]
        return share * x + (1 - share) * augmented(batch.partner_image, partner_keys(keys))

    return {"normalised": normalised, "network_input": network_input}


def _token_inputs() -> dict[str, Any]:
    """Those of tokens, which go into a network as they are, as floating point."""
    return {"normalised": lambda x: x.astype(float), "network_input": lambda batch, keys: batch.image.astype(float)}


def make_step_inputs(
    config: Config,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    num_examples: int,
    steps_per_epoch: int,
    task: Task = CLASSIFICATION,
) -> StepInputs:
    """What the steps of a run are fed.

    Args:
      config: The configuration.
      mean: [C], of the training images' channels, scaled to 0..1.
      std: [C], likewise.
      num_examples: Of the training set.
      steps_per_epoch: Complete batches of a pass.
      task: What the network learns.
    """
    epochs = {"num_epochs": config.num_epochs}
    rate = optim.make_schedule(config.optimizer, steps_per_epoch=steps_per_epoch, **epochs)
    aux_steps = steps_per_epoch * config.aux.inner_steps
    aux_rate = optim.make_schedule(config.aux_optimizer, steps_per_epoch=aux_steps, **epochs)
    initial = 1.0 if config.penalty.initial is None else config.penalty.initial  # unset where no method reads it
    beta = penalty_schedule(initial, config.penalty.growth, config.penalty.maximum)
    return StepInputs(
        num_examples=num_examples,
        steps_per_epoch=steps_per_epoch,
        **(_image_inputs(config, mean, std) if task.images else _token_inputs()),
        learning_rate=rate,
        optimizer=optim.make_optimizer(config.optimizer, rate, config.num_stages),
        aux_optimizer=optim.make_optimizer(config.aux_optimizer, aux_rate),
        initial_penalty_coef=initial,
        penalty_coef=lambda step: beta(step / steps_per_epoch).astype(float),
    )


def penalty_schedule(initial: float, growth: float, maximum: float | None) -> Callable[[Array | float], Array]:
    """beta by the epoch (which may be fractional): initial * growth ** epoch, at most `maximum` if there is one."""
    bound = math.inf if maximum is None else maximum
    return lambda epoch: jnp.minimum(bound, initial * jnp.power(growth, epoch))
