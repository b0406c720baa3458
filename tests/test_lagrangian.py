"""The equations: each rule against autodiff of the Lagrangian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from lpjax.methods.layer_parallel import lagrangian
from lpjax.nn import losses
from lpjax.state import step_inputs

pytestmark = pytest.mark.usefixtures("x64")
SHAPE = (5, 3, 2, 4)
N = 3 * 2 * 4


def arrays(count, seed=0):
    return [jax.random.normal(key, SHAPE) for key in jax.random.split(jax.random.key(seed), count)]


def test_psi_is_the_mean_square_and_its_gradient_autodiffs():
    (r,) = arrays(1)
    assert_close(losses.psi(r), jnp.square(r).reshape(5, -1).mean(1))
    assert_close(lagrangian.psi_gradient(r), N * jax.grad(lambda r: losses.psi(r).sum())(r))


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[1:]])
def test_correction_descends_the_lagrangian(shape):
    """lambda^+ = lambda - eta dL/dlambda in the mean inner product, for a multiplier of either shape."""
    lam, output, weights = arrays(3)
    kappa, beta, eta = jax.random.normal(jax.random.key(9), shape), 0.7, 0.3

    def task(lam):
        return jnp.sin(weights * lam).sum()

    def whole(lam):
        r = lam - output
        return task(lam) + (jnp.broadcast_to(kappa, r.shape) * r).sum() / N + beta * jnp.square(r).sum() / N

    adjoint = N * jax.grad(task)(lam)
    corrected = lagrangian.correction(lam, adjoint, kappa, lagrangian.violation(lam, output), beta, eta)
    assert_close(corrected, lam - eta * N * jax.grad(whole)(lam))


def test_stage_loss_is_what_the_lagrangian_has_of_an_output():
    output, target, kappa = arrays(3)
    loss = lagrangian.stage_loss(output, target, kappa, 0.7)
    expected = 0.7 * jnp.square(target - output).reshape(5, -1).mean(1) - (kappa * output).reshape(5, -1).mean(1)
    assert_close(loss, expected)
    with_tail = lagrangian.stage_loss(output, target, None, 0.7, lambda x: x.sum((1, 2, 3)))
    assert_close(with_tail, 0.7 * losses.psi(target - output) + output.sum((1, 2, 3)))


def test_multiplier_moves_along_the_violation():
    kappa, r = arrays(2)
    assert_close(lagrangian.update_multiplier(kappa, r, 0.5, 1.0), kappa + r)
    assert_close(lagrangian.update_multiplier(kappa, r, 0.5, 0.0), kappa)


def test_fit_gradient_is_autodiffs():
    lam, corrected = arrays(2)

    def fit(lam):
        return 0.5 * jnp.square(lam - corrected).sum() / N

    assert_close(lagrangian.fit_gradient(lam, corrected), N * jax.grad(fit)(lam))


def test_penalty_schedule():
    beta = step_inputs.penalty_schedule(0.5, 2.0, 3.0)
    np.testing.assert_allclose([beta(e) for e in (0.0, 1.0, 2.0, 2.5, 3.0)], [0.5, 1.0, 2.0, 0.5 * 2**2.5, 3.0])
    np.testing.assert_allclose(step_inputs.penalty_schedule(0.5, 2.0, None)(3.0), 4.0)


def test_correct_counts_the_largest_logit():
    logits = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    assert losses.correct(logits, jnp.array([1, 1], jnp.int32)).tolist() == [True, False]
