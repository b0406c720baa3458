"""Schedules, decay masks, and optimisation of packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close

from lpjax.config.schema import OptimizerConfig
from lpjax.state import optim

ROWS = {"kernel": jnp.array([[1.0, 2.0], [3.0, 0.0]]), "other": jnp.array([[1.0], [4.0]])}
GRADS = {"kernel": jnp.array([[0.5, 1.0], [30.0, 0.0]]), "other": jnp.array([[0.1], [40.0]])}


def schedule(**fields):
    return optim.make_schedule(OptimizerConfig(learning_rate=0.4, **fields), steps_per_epoch=10, num_epochs=6)


def test_warm_up_then_cosine_to_zero():
    rate = schedule(schedule="cosine", warmup_epochs=2.0)
    np.testing.assert_allclose([rate(s) for s in (0, 10, 20, 40, 60)], [0.0, 0.2, 0.4, 0.2, 0.0], atol=1e-7)


def test_steps_are_counted_from_the_start_of_training():
    rate = schedule(schedule="step", warmup_epochs=1.0, step_epochs=(3, 5), step_factor=0.5)
    np.testing.assert_allclose([rate(s) for s in (5, 10, 29, 31, 51)], [0.2, 0.4, 0.4, 0.2, 0.1], rtol=1e-6)


def test_a_warm_up_as_long_as_the_training_is_half_of_it():
    rate = schedule(schedule="constant", warmup_epochs=6.0)
    np.testing.assert_allclose([rate(s) for s in (0, 15, 30, 59)], [0.0, 0.2, 0.4, 0.4], atol=1e-7)
    rate = schedule(schedule="constant", warmup_epochs=5.0)
    np.testing.assert_allclose([rate(s) for s in (0, 25, 50, 59)], [0.0, 0.2, 0.4, 0.4], atol=1e-7)
    assert optim.warmup_steps(OptimizerConfig(warmup_epochs=0.6), 1, 1) == 0


def test_only_kernels_decay():
    tree = {"conv": {"kernel": 1}, "norm": {"scale": 1, "bias": 1}, "head": {"kernel": 1, "bias": 1}}
    assert optim.decayed(tree) == {
        "conv": {"kernel": True},
        "norm": {"scale": False, "bias": False},
        "head": {"kernel": True, "bias": False},
    }
    assert optim.decayed(ROWS) == {"kernel": True, "other": False}


@pytest.mark.parametrize("name", ["sgd", "adamw", "nadam"])
def test_weight_decay_moves_kernels_alone(name):
    config = OptimizerConfig(name=name, weight_decay=0.1, momentum=0.0, nesterov=False)
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1.0))
    no_grads = jax.tree.map(jnp.zeros_like, ROWS)
    new, _ = optim.update_rows(optimizer, no_grads, optim.init_rows(optimizer, ROWS), ROWS)
    assert_close(new, {"kernel": ROWS["kernel"] * 0.9, "other": ROWS["other"]}, rtol=1e-6)


@pytest.mark.parametrize("m", [0.9, 0.99])
def test_nesterov_momentum(m):
    """Second step at a constant gradient g: momentum m g + g, look-ahead m (m g + g) + g."""
    config = OptimizerConfig(momentum=m, nesterov=True, weight_decay=0.0)
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1.0))
    state = optim.init_rows(optimizer, ROWS)
    first, state = optim.update_rows(optimizer, GRADS, state, ROWS)
    second, _ = optim.update_rows(optimizer, GRADS, state, first)
    assert_close(jax.tree.map(jnp.subtract, ROWS, first), jax.tree.map(lambda g: (1 + m) * g, GRADS), rtol=1e-5)
    assert_close(
        jax.tree.map(jnp.subtract, first, second), jax.tree.map(lambda g: (m * (1 + m) + 1) * g, GRADS), rtol=1e-5
    )


def test_betas_of_adamw():
    """Second step, by hand: g and then -g/2, in means that are corrected for their start at zero."""
    config = OptimizerConfig(name="adamw", weight_decay=0.0, b1=0.8, b2=0.6)
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1.0))
    state = optim.init_rows(optimizer, ROWS)
    first, state = optim.update_rows(optimizer, GRADS, state, ROWS)
    second, _ = optim.update_rows(optimizer, jax.tree.map(lambda g: -g / 2, GRADS), state, first)
    mean, square = (0.8 * 0.2 - 0.2 / 2) / (1 - 0.8**2), (0.6 * 0.4 + 0.4 / 4) / (1 - 0.6**2)
    moved = jax.tree.map(lambda g: mean / square**0.5 * jnp.sign(g), GRADS)
    assert_close(jax.tree.map(jnp.subtract, first, second), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields, kept", [({}, 1), ({"momentum": 0.0}, 0), ({"name": "adamw"}, 2), ({"name": "nadam"}, 2)]
)
def test_values_that_an_optimizer_keeps_of_a_parameter(fields, kept):
    config = OptimizerConfig(clip_norm=1.0, **fields)
    assert optim.kept_values(config) == kept
    assert optim.accesses(config) == {0: 3, 1: 5, 2: 7}[kept]


def test_each_stage_is_clipped_by_its_own_norm():
    config = OptimizerConfig(momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=5.0)
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1.0))
    new, _ = optim.update_rows(optimizer, GRADS, optim.init_rows(optimizer, ROWS), ROWS)
    moved = jax.tree.map(jnp.subtract, ROWS, new)
    norms = np.asarray(optim.row_norms(GRADS))
    assert norms[1] == pytest.approx(50)
    np.testing.assert_allclose(optim.row_norms(moved), [norms[0], 5.0], rtol=1e-6)


def test_all_stages_are_clipped_by_one_norm():
    config = OptimizerConfig(momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=5.0, clip_over="network")
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1.0), num_stages=2)
    new, _ = optim.update_rows(optimizer, GRADS, optim.init_rows(optimizer, ROWS), ROWS)
    moved = jax.tree.map(jnp.subtract, ROWS, new)
    assert_close(moved, optax.clip_by_global_norm(5.0).update(GRADS, optax.EmptyState())[0], rtol=1e-5, atol=1e-6)
    small = jax.tree.map(lambda g: g / 100, GRADS)
    new, _ = optim.update_rows(optimizer, small, optim.init_rows(optimizer, ROWS), ROWS)
    assert_close(jax.tree.map(jnp.subtract, ROWS, new), small, rtol=1e-4, atol=1e-6)
