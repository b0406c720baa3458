"""The method's oracles: tests that cannot pass by accident.  Each fails under a one-character fault of the code."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, dataset, detach, plain_sgd, small_config, small_run, take_steps, trees
from jax.sharding import PartitionSpec as P

from lpjax.config.schema.penalty import POLICIES
from lpjax.methods.layer_parallel import lagrangian
from lpjax.methods.layer_parallel.stage import stage_pass
from lpjax.network import aux_net
from lpjax.network.network import composed
from lpjax.nn import chain, losses
from lpjax.nn.chain import Mode
from lpjax.parallel.mesh import ALL_AXES, EXAMPLES, Stage, make_mesh
from lpjax.training.run import prepare

pytestmark = pytest.mark.usefixtures("x64")
TRAIN = Mode(train=True)


def input_and_labels(run, count=16):
    """Un-augmented network input and labels of the first examples."""
    batch = next(run.feed.train())
    x = (batch.image.astype(float) / 255 - dataset(run).mean[0]) / dataset(run).std[0]
    return detach((x[:count], batch.label[:count]))


# 1 ------------------------------------------------------------------------------------------------------------------


RANDOM = {
    "model": {"function": "wide_resnet", "depth": 10, "widen": 1, "dropout": 0.5},
    "data__cutout": 3,
}
"""Five units, with dropout: as all randomness, the same on every mesh."""


@pytest.mark.parametrize("data, settings", [(1, {}), (2, {}), (2, RANDOM)])
def test_one_stage_is_backprop(data, settings):
    layer_parallel, figures = take_steps(small_run(num_stages=1, mesh__data=data, **settings), 3)
    serial, serial_figures = take_steps(small_run(num_stages=1, method="serial", mesh__data=data, **settings), 3)
    assert_close(layer_parallel.stage_params, serial.stage_params)
    assert_close(layer_parallel.stage_stats, serial.stage_stats)
    for ours, theirs in zip(figures, serial_figures, strict=True):
        assert_close({name: ours[name] for name in theirs}, theirs)


# 2 ------------------------------------------------------------------------------------------------------------------

MESHES = [(4, 1), (2, 1), (1, 2), (2, 2)]
SETTINGS = {
    "none": {"penalty__sweeps": 1, "aux__inner_steps": 2, "aux__correction_step": 0.3, **RANDOM},
    "mean": {"optimizer__clip_norm": 0.1, "optimizer__name": "adamw", "optimizer__learning_rate": 0.01},
    "per_example": {"data__crop": 0},
    "adjoint": {},
    "coarse_tail": {"penalty__growth": 2.0, "remat": True, "aux__grid": 2, **RANDOM},
}


@pytest.fixture(scope="module")
def reference():
    """Three steps of each policy on one device."""
    done = {}

    def get(policy):
        if policy not in done:
            done[policy] = take_steps(small_run(multiplier=policy, mesh__stage=1, **SETTINGS[policy]), 3)
        return done[policy]

    return get


@pytest.mark.parametrize(
    "policy, shape",
    [
        pytest.param(
            policy,
            shape,
            marks=() if shape == (2, 2) and policy not in ("none", "mean") else pytest.mark.slow,
        )
        for policy, shape in itertools.product(POLICIES, MESHES)
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_every_mesh_gives_the_same_numbers(policy, shape, reference):
    expected_state, expected = reference(policy)
    stage, data = shape
    state, figures = take_steps(small_run(multiplier=policy, mesh__stage=stage, mesh__data=data, **SETTINGS[policy]), 3)
    if policy == "per_example":  # the table is padded to a multiple of the devices
        rows = [len(table) for table in expected_state.multiplier]
        state = state.replace(multiplier=tuple(t[:n] for t, n in zip(state.multiplier, rows, strict=True)))
        assert all(np.abs(table).max() > 0 for table in state.multiplier)
    assert_close(figures, expected)
    assert_close(state, expected_state)


# 3 ------------------------------------------------------------------------------------------------------------------


def test_sharded_aux_net_is_the_replicated_one():
    run = small_run()
    x, labels = input_and_labels(run)
    _, _, params, stats = trees(run)
    pieces, shapes = run.network.aux_net, run.network.interfaces[1:]

    def outputs_and_gradients(params, x, labels, axes):
        def loss(params, shifts):
            lam, logits, new = aux_net.apply(pieces, params, stats, x, shifts, Mode(train=True, axes=axes))
            value = losses.task_loss(logits, labels).sum() + sum((out**3).sum() for out in lam)
            return value, (lam, new)

        no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in shapes)
        (_, (lam, new)), (grads, adjoints) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, no_shift)
        return lam, adjoints, jax.lax.psum(grads, axes) if axes else grads, new

    mesh = make_mesh(4, 2)
    sharded = jax.jit(
        jax.shard_map(
            partial(outputs_and_gradients, axes=ALL_AXES),
            mesh=mesh,
            in_specs=(P(), EXAMPLES, EXAMPLES),
            out_specs=(EXAMPLES, EXAMPLES, P(), P()),
            check_vma=False,
        )
    )
    replicated = jax.jit(partial(outputs_and_gradients, axes=()))
    assert_close(jax.device_get(sharded(params, x, labels)), jax.device_get(replicated(params, x, labels)))


# 4 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 7.0])
def test_true_inputs_and_swept_multipliers_give_backprop(beta):
    run = small_run()
    config = small_config(multiplier="per_example", data__crop=0, batch_size=len(input_and_labels(run)[0]))
    network, (x, labels) = run.network, input_and_labels(run)
    params, stats, *aux = trees(run)

    def loss(params):
        return losses.task_loss(composed(network, params, stats, x, TRAIN)[0], labels).mean()

    def by_stages(params):
        lam = [x]
        for k in range(3):
            lam.append(chain.apply(network.stages[k], params[k], stats[k], lam[k], TRAIN)[0])
        kappa, grads = None, []
        for k in (3, 2, 1, 0):
            done = stage_pass(
                network,
                Stage((k,), k),
                params=params[k],
                stats=stats[k],
                lam=lam[k],
                target=lam[k + 1] if k < 3 else None,
                multiplier=kappa,
                targets=losses.Targets(labels),
                aux=tuple(aux),
                penalty_coef=beta,
                config=config,
            )
            kappa = -done.output[0]
            grads.insert(0, done.grads)
        return tuple(grads)

    assert_close(jax.jit(by_stages)(params), jax.jit(jax.grad(loss))(params))


# 5 ------------------------------------------------------------------------------------------------------------------


def test_a_stage_learns_nothing_from_another_stages_weights():
    """Changing W_i leaves the update of every other stage exactly as it was."""
    run = small_run(multiplier="none", **plain_sgd())
    batch = next(run.feed.train())
    before = jax.device_get(run.create().stage_params["kernel"])
    base = jax.device_get(run.step(run.create(), batch)[0].stage_params["kernel"]) - before
    for i in range(4):
        state = run.create()
        kernel = state.stage_params["kernel"].at[i].mul(1.5)
        changed = state.replace(stage_params=state.stage_params | {"kernel": kernel})
        old = jax.device_get(kernel)
        update = jax.device_get(run.step(changed, batch)[0].stage_params["kernel"]) - old
        for k in range(4):
            assert np.array_equal(update[k], base[k]) == (k != i), f"stage {k}, weights of {i}"


@pytest.mark.parametrize(
    "policy, grid",
    [
        *(pytest.param(p, None, marks=pytest.mark.slow if p == "coarse_tail" else ()) for p in POLICIES),
        ("coarse_tail", 2),
    ],
)
def test_the_fit_is_the_gradient_of_the_lagrangian(policy, grid):
    """One step of the fit with eta = 1 is dL/domega, L being (1) of `lagrangian` differentiated as a whole.

    With the coarse tails' losses for that policy, and the AuxNet's own cross entropy at weight 0.3.
    """
    beta, weight = 0.7, 0.3
    run = small_run(
        multiplier=policy,
        data__crop=0,
        aux__grid=grid,
        aux__task_weight=weight,
        penalty__initial=beta,
        penalty__aux=None,
        **plain_sgd(),
    )
    network, (x, labels) = run.network, input_and_labels(run)
    params, stats, omega, aux_stats = trees(run)
    no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])

    def aux_loss(omega, shifts):
        lam, logits, _ = aux_net.apply(network.aux_net, omega, aux_stats, x, shifts, TRAIN)
        return losses.task_loss(logits, labels).mean(), lam

    rng = np.random.default_rng(0)
    kappa = [jnp.asarray(rng.normal(size=(len(x), *shape))) for shape in network.interfaces[1:]]
    if policy == "mean":
        kappa = [jnp.broadcast_to(k[:1], k.shape) for k in kappa]
    elif policy == "adjoint":
        adjoints, _ = jax.jit(jax.grad(aux_loss, argnums=1, has_aux=True))(omega, no_shift)
        kappa = [-p.size * p for p in adjoints]
    elif policy != "per_example":
        kappa = [jnp.zeros_like(k) for k in kappa]

    def augmented_lagrangian(omega):
        own, lam = aux_loss(omega, no_shift)
        total, inputs = weight * own, (x, *lam)
        for k in range(4):
            output, _ = chain.apply(network.stages[k], params[k], stats[k], inputs[k], TRAIN)
            if k == 3:
                total += losses.task_loss(output, labels).mean()
                continue
            r = inputs[k + 1] - output
            total += ((kappa[k] * r).mean((1, 2, 3)) + beta * (r**2).mean((1, 2, 3))).mean()
            if policy == "coarse_tail":
                tail = aux_net.tail_logits(network.aux_tails, omega, aux_stats, k + 1, output, TRAIN, None)
                total += losses.task_loss(tail, labels).mean()
        return total

    expected = jax.jit(jax.grad(augmented_lagrangian))(omega)
    batch, state = next(run.feed.train()), run.create()
    if policy == "mean":
        state = state.replace(multiplier=tuple(k[0] for k in kappa))
    if policy == "per_example":
        index = np.asarray(batch.index)
        tables = zip(state.multiplier, kappa, strict=True)
        state = state.replace(multiplier=tuple(table.at[index].set(k) for table, k in tables))
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, run.create()))
    new = jax.device_get(run.step(state, batch)[0].aux_params)
    assert_close(jax.tree.map(lambda o, n: o - n, jax.device_get(omega), new), jax.device_get(expected))


@pytest.mark.parametrize("stage, data", [pytest.param(1, 1, marks=pytest.mark.slow), (2, 2)])
def test_adjoint_matching_is_the_gradient_of_the_mismatch(stage, data):
    """Of (9) of `lagrangian` differentiated as a whole, the stages' adjoints held fixed."""
    fields = {"data__crop": 0, "mesh__stage": stage, "mesh__data": data, **plain_sgd()}
    run = small_run(aux__adjoint_weight=0.7, **fields)
    network, (x, labels) = run.network, input_and_labels(run)
    params, stats, omega, aux_stats = trees(run)
    no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])

    @jax.jit
    def of_stages(omega):
        inputs = (x, *aux_net.apply(network.aux_net, omega, aux_stats, x, no_shift, TRAIN)[0], None)
        return [
            stage_pass(
                network, Stage((k,), k), params=params[k], stats=stats[k], lam=inputs[k], target=inputs[k + 1],
                multiplier=None, targets=losses.Targets(labels), aux=(omega, aux_stats), penalty_coef=0.1,
                config=run.config,
            ).output[0]
            for k in range(4)
        ]  # fmt: skip

    adjoints = of_stages(omega)

    def mismatch(omega):
        def loss(shifts):
            logits = aux_net.apply(network.aux_net, omega, aux_stats, x, shifts, TRAIN)[1]
            return losses.task_loss(logits, labels).sum()

        own = [n[0].size * n for n in jax.grad(loss)(no_shift)]
        return sum(((d - p) ** 2).sum() / (p**2).sum() for d, p in zip(own, adjoints[1:], strict=True))

    expected = jax.tree.map(lambda g: 0.7 * g, jax.jit(jax.grad(mismatch))(omega))
    batch = next(run.feed.train())
    new, plain = (jax.device_get(r.step(r.create(), batch)[0].aux_params) for r in (run, small_run(**fields)))
    assert_close(jax.tree.map(lambda n, p: p - n, new, plain), jax.device_get(expected))


# 6 ------------------------------------------------------------------------------------------------------------------


def minimise_linear_quadratic(beta, rate, iterations=4000):
    """min over w of 1/2 <lambda - t, lambda - t> + mu/2 w^2 subject to lambda = w x, by the rules of `lagrangian`.

    Returns w, the exact w, and the mean square of the violation.  `rate` = 0 is the penalty method.
    """
    rng = np.random.default_rng(1)
    x, t = (jnp.asarray(rng.normal(size=(6, 2, 2, 1))) for _ in range(2))
    mu = 0.5
    exact = (x * t).mean() / ((x * x).mean() + mu)

    def local_loss(w, lam, kappa):
        return lagrangian.stage_loss(w * x, lam, kappa, beta).mean() + mu / 2 * w**2

    @jax.jit
    def iterate(_, carry):
        w, lam, kappa = carry
        step = 0.2 / (1 + 2 * beta)
        w_next = w - step * jax.grad(local_loss)(w, lam, kappa)
        r = lagrangian.violation(lam, w * x)
        adjoint = lam - t  # of 1/2 <lambda - t, lambda - t>
        lam_next = lagrangian.correction(lam, adjoint, kappa, r, beta, step)
        return w_next, lam_next, lagrangian.update_multiplier(kappa, r, beta * step, rate)

    w, lam, _ = jax.lax.fori_loop(0, iterations, iterate, (jnp.asarray(0.0), jnp.zeros_like(x), jnp.zeros_like(x)))
    return float(w), float(exact), float(losses.psi(lagrangian.violation(lam, w * x)).mean())


def test_penalty_stalls_where_the_multiplier_converges():
    w1, exact, violation1 = minimise_linear_quadratic(beta=5.0, rate=0.0, iterations=20000)
    w2, _, violation2 = minimise_linear_quadratic(beta=50.0, rate=0.0, iterations=200000)
    assert 5 < abs(w1 - exact) / abs(w2 - exact) < 15, "the penalty's error is O(1/beta)"
    assert 5 < np.sqrt(violation1 / violation2) < 15, "and so is its violation"
    assert abs(w2 - exact) > 1e-4
    w, exact, violation = minimise_linear_quadratic(beta=5.0, rate=1.0, iterations=20000)
    assert abs(w - exact) < 1e-9
    assert violation < 1e-18


# coarse correction sweeps -------------------------------------------------------------------------------------------


def test_sweeps_make_inputs_exact_from_the_left():
    """lambda_1 after one sweep, lambda_2 after two, all after K-1; not before."""
    run = small_run()
    network, (params, stats, aux, aux_stats) = run.network, trees(run)
    x, mode = jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), TRAIN
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
        run = small_run(multiplier="none", penalty__sweeps=sweeps, num_stages=3, batch_size=18)
        return jax.device_get(run.step(run.create(), next(run.feed.train()))[1]["relative_violation"])

    some, none = violation(1), violation(2)
    assert some[0] < 1e-18
    assert some[1] > 1e-3
    assert none.max() < 1e-18


# 7 ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiles():
    """How many programs were compiled, as a list that grows."""
    events: list[str] = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    "policy", [pytest.param(p, marks=[pytest.mark.slow] * (p in ("none", "mean"))) for p in POLICIES]
)
def test_one_compile_no_transfer_donated_state(policy, compiles):
    run = prepare(small_config(multiplier=policy, data__crop=0))
    state, batches = run.create(), run.feed.train()
    counts = []
    for _ in range(3):
        batch, old = next(batches), state
        before = len(compiles)
        with jax.transfer_guard("disallow"):
            state, figures = run.step(old, batch)
        counts.append(len(compiles) - before)
        for path, leaf in jax.tree.leaves_with_path(old):
            assert leaf.is_deleted(), f"{jax.tree_util.keystr(path)} was copied, not donated"
    assert counts == [1, 0, 0]
    assert np.isfinite(jax.device_get(figures["task_loss"]))
