"""Gradients against backprop's, where what must come out is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_run

from lpjax.training.diagnosis import Diagnosis, cosine_and_ratio

STILL = {"optimizer__learning_rate": 1e-14, "optimizer__weight_decay": 0.0, "aux_optimizer__learning_rate": 1e-14}
"""Weights that do not move: no gradient is stale."""


def last_figures(steps, **fields):
    run = small_run(diagnose_every=1, **fields)
    diagnosis, state, batches = Diagnosis(run), run.create(), run.feed.train()
    for number in range(1, steps + 1):
        state, figures = diagnosis.step(number, state, next(batches))
    return jax.device_get(figures)


def test_cosine_and_ratio():
    mine = {"kernel": jnp.array([[1.0, 0.0], [3.0, 0.0]]), "other": jnp.array([[0.0], [4.0]])}
    theirs = {"kernel": jnp.array([[0.0, 2.0], [6.0, 0.0]]), "other": jnp.array([[0.0], [8.0]])}
    cosine, ratio = cosine_and_ratio(mine, theirs)
    np.testing.assert_allclose(cosine, [0, 1], rtol=1e-6)
    np.testing.assert_allclose(ratio, [0.5, 0.5], rtol=1e-6)
    assert np.isfinite(cosine_and_ratio(mine, jax.tree.map(jnp.zeros_like, theirs))).all()


@pytest.mark.parametrize(
    "fields, ratio",
    [
        ({"method": "data_parallel"}, [1, 1, 1, 1]),
        ({"method": "pipeline", "pipeline__micro_batches": 1}, [1, 1, 1, 1]),
        ({"method": "delayed", "delayed__shrink": 0.5, **STILL}, [1 / 8, 1 / 4, 1 / 2, 1]),
        ({"method": "delayed", "delayed__variant": "ddg", **STILL}, [1, 1, 1, 1]),
        ({"method": "corrected", "corrected__micro_batches": 1, **STILL}, [1, 1, 1, 1]),
    ],
)
def test_exact_gradients_have_cosine_one(fields, ratio, x64):
    """Of delayed ones too where the weights stand still: each is compared on its own batch."""
    figures = last_figures(8, **fields)
    np.testing.assert_allclose(figures["gradient_cosine"], np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(figures["gradient_ratio"], ratio, rtol=1e-6)


@pytest.mark.parametrize("method", ["local", "coarse_adjoint"])
def test_only_the_last_stage_of_local_learning_sees_backprops_gradient(method, x64):
    figures = last_figures(5, method=method, **STILL)
    np.testing.assert_allclose(figures["gradient_cosine"][-1], 1, rtol=1e-6)
    assert (np.abs(figures["gradient_cosine"][:-1]) < 0.9).all()


def test_layer_parallel_and_that_the_step_is_the_same_step(x64):
    run = small_run(diagnose_every=2)
    diagnosis, (state, plain), batches = Diagnosis(run), (run.create(), run.create()), run.feed.train()
    for number in (1, 2, 3):
        batch = next(batches)
        state, figures = diagnosis.step(number, state, batch)
        plain, expected = run.step(plain, batch)
        assert ("gradient_cosine" in figures) == (number == 2)
        np.testing.assert_allclose(figures["task_loss"], expected["task_loss"], rtol=1e-12)
        if number == 2:
            assert (np.abs(figures["gradient_cosine"]) < 1 - 1e-6).all(), "the last stage's input is the AuxNet's"
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    np.testing.assert_allclose(state.stage_params["kernel"], plain.stage_params["kernel"], rtol=1e-9, atol=1e-12)
