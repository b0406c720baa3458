"""optax optimisers from the configuration, and their use on packed stages."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, PyTree

from lpjax.config.schema import OptimizerConfig
from lpjax.network.packing import kind

SLOTS = "slots"
"""Name of the axis of a device's stages while an optimiser acts on them."""


def decayed(params: PyTree) -> PyTree:
    """Mask of weight decay: True for leaves called `kernel`, in a stage's tree as in a packed row."""
    return jax.tree.map_with_path(lambda path, _: kind(path) == "kernel", params)


def warmup_steps(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> int:
    """Steps of the warm-up; half of all where it would be as long as the training, as in a first try of one epoch.

    Args:
      config: The optimiser's section.
      steps_per_epoch: Of the optimiser.
      num_epochs: Of the training.
    """
    steps, total = round(config.warmup_epochs * steps_per_epoch), num_epochs * steps_per_epoch
    return steps if steps < total else total // 2


def make_schedule(config: OptimizerConfig, *, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Make the learning rate as a function of the optimiser's step.

    Args:
      config: The optimiser's section.
      steps_per_epoch: Of the optimiser.
      num_epochs: After which the schedule ends.
    """
    warmup, total = warmup_steps(config, steps_per_epoch, num_epochs), num_epochs * steps_per_epoch
    rate = config.learning_rate
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, total - warmup)
    elif config.schedule == "step":
        boundaries = {round(epoch * steps_per_epoch) - warmup: config.step_factor for epoch in config.step_epochs}
        main = optax.piecewise_constant_schedule(rate, boundaries)
    else:
        main = optax.constant_schedule(rate)
    if warmup:
        main = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
    return main


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, num_stages: int = 1
) -> optax.GradientTransformation:
    """Make an optimiser: clipping, weight decay on kernels, and SGD with momentum or AdamW, by the schedule.

    Args:
      config: The optimiser's section.
      schedule: The learning rate by the step.
      num_stages: K; read where gradients are clipped over the network.
    """
    clip = optax.identity()
    if config.clip_norm is not None and config.clip_over == "network":
        clip = clip_by_network_norm(config.clip_norm, num_stages)
    elif config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    if config.name == "adamw":
        adamw = optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decayed)
        return optax.chain(clip, adamw)
    return optax.chain(
        clip,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
    )


def clip_by_network_norm(max_norm: float, num_stages: int) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, by the norm over all stages, for `update_rows`.

    One psum over 'stage' of a scalar, where a device does not hold all stages.
    """

    def clipped(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        squares = lax.psum(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(grads)), SLOTS)
        if lax.psum(1, SLOTS) < num_stages:
            squares = lax.psum(squares, "stage")
        norm = jnp.sqrt(squares)
        return jax.tree.map(lambda g: jnp.where(norm < max_norm, g, g / norm * max_norm), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), clipped)


def init_rows(optimizer: optax.GradientTransformation, rows: PyTree) -> PyTree:
    """Make the optimiser state of packed stages: every leaf, counters too, has the leading axis of the rows."""
    return jax.vmap(optimizer.init)(rows)


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Take one step of an optimiser.

    Args:
      optimizer: The optimiser.
      grads: A tree like `params`.
      state: The optimiser's state.
      params: The parameters.

    Returns:
      The new parameters and optimiser state.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counters with floats
        updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def update_rows(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, rows: PyTree
) -> tuple[PyTree, PyTree]:
    """Take one step of an optimiser on packed stages, each by itself but for `clip_by_network_norm`.

    Args:
      optimizer: The optimiser.
      grads: Rows like `rows`.
      state: The optimiser's state, every leaf with the leading axis of the rows.
      rows: The parameters.

    Returns:
      The new rows and optimiser state.
    """
    return jax.vmap(partial(update, optimizer), axis_name=SLOTS)(grads, state, rows)


def row_norms(rows: PyTree) -> Array:
    """L2 norm of each row, [K]."""
    return jnp.sqrt(sum(jnp.square(leaf).sum(-1) for leaf in jax.tree.leaves(rows)))
