"""optax optimisers from the configuration, and their use on packed stages."""

import functools
from collections.abc import Sequence
from functools import partial
from statistics import mean

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from lpjax.config.schema import Config, OptimizerConfig
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


def age_factors(
    config: Config, ages: Sequence[Sequence[tuple[int, int]]], steps_per_epoch: int
) -> optax.Schedule | None:
    """Make the factors of the stages' learning rates by the age of their gradients.

    In step t of T that of a stage is (1 + age) ** -(p (1 - t/T)), p `optimizer.age_discount` and age the mean over its
    micro-batches, in updates: T1 of PipeMare (arXiv:1910.05124).

    Args:
      config: The configuration.
      ages: Of its method, see `Method.ages`.
      steps_per_epoch: Of the training.

    Returns:
      Their values [K] by the step; None where all are 1.
    """
    discount, num_steps = config.optimizer.age_discount, config.num_epochs * steps_per_epoch
    age = [mean(updates for _, updates in own) for own in ages]
    if not discount or not any(age):
        return None
    return lambda step: jnp.power(1 + jnp.array(age, float), -discount * (1 - jnp.asarray(step, float) / num_steps))


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, num_stages: int = 1
) -> optax.GradientTransformation:
    """Make an optimiser: clipping, weight decay on kernels, and SGD with momentum, AdamW or NAdam, by the schedule.

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
    if config.name != "sgd":
        own = {"weight_decay": config.weight_decay, "mask": decayed, "nesterov": config.name == "nadam"}
        return optax.chain(clip, optax.adamw(schedule, config.b1, config.b2, **own))
    return optax.chain(
        clip,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
    )


@functools.cache
def kept_values(config: OptimizerConfig) -> int:
    """Count the values that an optimiser keeps of a parameter: SGD's momentum, Adam's two means."""
    params = {"kernel": jax.ShapeDtypeStruct((1,), jnp.float32)}
    state = jax.eval_shape(make_optimizer(config, optax.constant_schedule(1.0)).init, params)
    return sum(leaf.shape == (1,) for leaf in jax.tree.leaves(state))


def accesses(config: OptimizerConfig) -> int:
    """Accesses to memory for a parameter in an update: it and `kept_values` read and written, its gradient read."""
    return 3 + 2 * kept_values(config)


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
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    factor: Float[Array, ""] | None = None,
) -> tuple[PyTree, PyTree]:
    """Take one step of an optimiser.

    Args:
      optimizer: The optimiser.
      grads: A tree like `params`.
      state: The optimiser's state.
      params: The parameters.
      factor: Of the learning rate; None for 1.

    Returns:
      The new parameters and optimiser state.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its integer counters with floats
        updates, state = optimizer.update(grads, state, params)
    if factor is not None:
        updates = jax.tree.map(lambda update: factor * update, updates)
    return optax.apply_updates(params, updates), state


def update_rows(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    state: PyTree,
    rows: PyTree,
    factors: Float[Array, " rows"] | None = None,
) -> tuple[PyTree, PyTree]:
    """Take one step of an optimiser on packed stages, each by itself but for `clip_by_network_norm`.

    Args:
      optimizer: The optimiser.
      grads: Rows like `rows`.
      state: The optimiser's state, every leaf with the leading axis of the rows.
      rows: The parameters.
      factors: Of the rows' learning rates; None for 1.

    Returns:
      The new rows and optimiser state.
    """
    return jax.vmap(partial(update, optimizer), axis_name=SLOTS)(grads, state, rows, factors)


def row_norms(rows: PyTree) -> Array:
    """L2 norm of each row, [K]."""
    return jnp.sqrt(sum(jnp.square(leaf).sum(-1) for leaf in jax.tree.leaves(rows)))
