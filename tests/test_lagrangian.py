"""The equations: each rule against autodiff of the Lagrangian, sweeps against the exact inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, small_run, trees

from lpjax import chain, lagrangian
from lpjax.chain import Mode

pytestmark = pytest.mark.usefixtures("x64")
SHAPE = (5, 3, 2, 4)
N = 3 * 2 * 4


def arrays(count, seed=0):
    return [jax.random.normal(key, SHAPE) for key in jax.random.split(jax.random.key(seed), count)]


def test_psi_is_the_mean_square_and_its_gradient_autodiffs():
    (r,) = arrays(1)
    assert_close(lagrangian.psi(r), jnp.square(r).reshape(5, -1).mean(1))
    assert_close(lagrangian.psi_gradient(r), N * jax.grad(lambda r: lagrangian.psi(r).sum())(r))


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
    with_tail = lagrangian.stage_loss(output, target, None, 0.7, lambda out: out.sum((1, 2, 3)))
    assert_close(with_tail, 0.7 * lagrangian.psi(target - output) + output.sum((1, 2, 3)))


def test_multiplier_moves_along_the_violation():
    kappa, r = arrays(2)
    assert_close(lagrangian.update_multiplier(kappa, r, 0.5, 1.0), kappa + r)
    assert_close(lagrangian.update_multiplier(kappa, r, 0.5, 0.0), kappa)


def test_fit_gradient_is_autodiffs():
    lam, corrected = arrays(2)

    def fit(lam):
        return 0.5 * jnp.square(lam - corrected).sum() / N

    assert_close(lagrangian.fit_gradient(lam, corrected), N * jax.grad(fit)(lam))


def test_sweeps_make_inputs_exact_from_the_left():
    """lambda_1 after one sweep, lambda_2 after two, all after K-1; not before."""
    run = small_run()
    network, (params, stats, aux, aux_stats) = run.network, trees(run)
    x, mode = jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), Mode(train=True)
    stages = [lambda y, k=k: chain.apply(network.stages[k], params[k], stats[k], y, mode)[0] for k in range(3)]
    pieces = [lambda y, j=j: chain.apply(network.aux_net[j], aux[j], aux_stats[j], y, mode)[0] for j in range(3)]
    exact, lam = [x], [x]
    for stage, piece in zip(stages, pieces, strict=True):
        exact.append(stage(exact[-1]))
        lam.append(piece(lam[-1]))
    for sweep in range(1, 4):
        lam = lagrangian.coarse_correction(pieces, lam, [s(y) for s, y in zip(stages, lam, strict=False)])
        errors = [float(jnp.abs(a - b).max()) for a, b in zip(lam, exact, strict=True)]
        assert max(errors[: sweep + 1]) < 1e-9, f"sweep {sweep}: {errors}"
        assert all(error > 1e-2 for error in errors[sweep + 1 :]), f"sweep {sweep}: {errors}"


def test_all_sweeps_make_the_steps_violation_vanish():
    """The same through the step on its devices."""

    def violation(sweeps):
        run = small_run(multiplier="none", penalty__sweeps=sweeps)
        return jax.device_get(run.step(run.create(), next(iter(run.batches())))[1]["relative_violation"])

    some, none = violation(2), violation(3)
    assert some[0] < 1e-18
    assert some[1] < 1e-18
    assert some[2] > 1e-3
    assert none.max() < 1e-18


def test_penalty_schedule():
    beta = lagrangian.penalty_schedule(0.5, 2.0, 3.0)
    np.testing.assert_allclose([beta(e) for e in (0.0, 1.0, 2.0, 2.5, 3.0)], [0.5, 1.0, 2.0, 0.5 * 2**2.5, 3.0])
    np.testing.assert_allclose(lagrangian.penalty_schedule(0.5, 2.0, None)(3.0), 4.0)


def test_correct_counts_the_largest_logit():
    logits = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    assert lagrangian.correct(logits, jnp.array([1, 1], jnp.int32)).tolist() == [True, False]
