"""Every method against a plain route: no mesh, no packets, no switch; composed functions and autodiff."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    cut_network,
    dataset,
    detach,
    on_host,
    plain_sgd,
    small_config,
    small_run,
    take_steps,
    trees,
)
from jax.sharding import PartitionSpec as P

from lpjax.config.schema.methods import LocalConfig
from lpjax.methods import METHODS
from lpjax.methods.local.classifiers import classifiers
from lpjax.models.preact_resnet import preact_resnet
from lpjax.models.resnet import Classifier, ConvBlock, MaxPool, imagenet_resnet, resnet
from lpjax.network.network import composed
from lpjax.nn import chain, layers, losses
from lpjax.nn.chain import Mode
from lpjax.nn.layers import STANDARDISE
from lpjax.training import resume
from lpjax.training import run as runs
from lpjax.training.log import NonFiniteError, check_finite

TRAIN = Mode(train=True)
RATE = 0.3
RANDOM = {
    "model": {"function": "wide_resnet", "depth": 10, "widen": 1, "dropout": 0.5},
    "data__cutout": 3,
}
STAGED = {
    "pipeline": {"method": "pipeline", "pipeline__micro_batches": 2},
    "fdg": {"method": "delayed", "delayed__shrink": 0.9, "optimizer__age_discount": 0.5},
    "ddg": {"method": "delayed", "delayed__variant": "ddg"},
    "by batch": {"method": "delayed", "delayed__micro_batches": 2, "delayed__weights": "batch"},
    "activations": {"method": "delayed", "delayed__micro_batches": 2, "delayed__keep": "activations"},
    "corrected": {"method": "corrected", "corrected__micro_batches": 2, "aux__grid": 2},
    "local": {"method": "local"},
    "sampled": {"method": "local", "local__classifier": "sampled", "local__residue": 0.3},
    "momentum": {"method": "local", "local__classifier": "momentum", "local__residue": 0.3},
    "coarse_adjoint": {"method": "coarse_adjoint", "aux__grid": 2},
    "coarse_adjoint, tied": {"method": "coarse_adjoint", "aux__grid": 2, "aux__tied": True},
}


def plain_batches(run, count):
    """Un-augmented inputs and labels of the first batches."""
    batches = run.feed.train()
    found = [next(batches) for _ in range(count)]
    mean, std = dataset(run).mean[0], dataset(run).std[0]
    return [detach(((b.image.astype(float) / 255 - mean) / std, b.label)) for b in found]


def after(run, count, begin=0):
    """The stages' parameters after each of `count` steps, the first of which has the number `begin`."""
    state, batches, history = run.create(), run.feed.train(), []
    state = state.replace(step=state.step + begin)
    for _ in range(count):
        state, _ = run.step(state, next(batches))
        history.append(detach(run.network.params.unpack_all(state.stage_params)))
    return history


def descended(params, grads, rate=RATE):
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def loss_of(run, stats, x, labels):
    """Of the composed network at parameters of the stages, a sum over the examples / B."""

    def loss(params):
        logits, _ = composed(run.network, params, stats, x, TRAIN)
        return losses.task_loss(logits, labels).sum() / run.config.batch_size

    return loss


# every mesh -----------------------------------------------------------------------------------------------------------


def shared(carry):
    """A carry without what devices keep for themselves."""
    return replace(carry, kept={}) if hasattr(carry, "kept") else carry


LESS = {"local", "sampled", "coarse_adjoint"}  # "momentum" and "coarse_adjoint, tied" have all that these have
OFTEN = [name for name in STAGED if name not in LESS]


@pytest.mark.parametrize(
    "shape, name",
    [
        *(((2, 2), name) for name in OFTEN),
        *(pytest.param((2, 2), name, marks=pytest.mark.slow) for name in STAGED if name not in OFTEN),
        *(pytest.param((4, 1), name, marks=pytest.mark.slow) for name in STAGED),
    ],
    ids=str,
)
def test_every_mesh_gives_the_same_numbers(name, shape, x64):
    """With augmentation, dropout, momentum and clipping, and longer than it takes to fill the pipeline."""
    fields = STAGED[name] | RANDOM | {"optimizer__clip_norm": 0.5}
    expected, expected_figures = take_steps(small_run(**fields, mesh__stage=1), 7)
    state, figures = take_steps(small_run(**fields, mesh__stage=shape[0], mesh__data=shape[1]), 7)
    assert_close(figures, expected_figures)
    assert_close(*(replace(own, carry=shared(own.carry)) for own in (state, expected)))
    assert figures[-1]["task_loss"] > 0


@pytest.mark.parametrize("name", STAGED)
def test_a_stage_lives_on_its_device_and_waits_for_no_other_inside_its_branch(name):
    run = small_run(**STAGED[name], mesh__stage=4, mesh__data=2)
    state, batch = run.create(), next(run.feed.train())
    switches = [eqn for eqn in equations(jax.make_jaxpr(run.step)(state, batch).jaxpr) if eqn.primitive.name == "cond"]
    assert max(len(switch.params["branches"]) for switch in switches) >= 4
    axes = set()
    for switch in switches:
        for inner in (inner for branch in switch.params["branches"] for inner in equations(branch.jaxpr)):
            if inner.primitive.name != "axis_index":
                over = (str(inner.params.get(key)) for key in ("axes", "axis_name"))
                axes |= {names for names in over if "data" in names or "stage" in names}
    assert axes == {"('data',)"}, "batch norm's, and nothing over 'stage'"
    for leaf in jax.tree.leaves((state.stage_params, state.stage_opt, state.carry)):  # a step returns it as it got it
        assert leaf.sharding.spec[0] == "stage"
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}, "one stage a device"


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# pipeline -------------------------------------------------------------------------------------------------------------


def pipeline_run(micro_batches, keep, **fields):
    own = {"pipeline__micro_batches": micro_batches, "pipeline__keep": keep}
    return small_run(method="pipeline", **own, **plain_sgd(RATE), **fields)


@pytest.mark.parametrize(
    "keep, micro_batches",  # fewer and more than the 7 that can be under way
    [
        ("activations", 4),
        ("inputs", 8),
        *(pytest.param(*own, marks=pytest.mark.slow) for own in (("activations", 8), ("inputs", 1), ("inputs", 4))),
        ("activations", 1),
    ],
)
def test_pipeline_is_gradient_accumulation(micro_batches, keep, x64):
    run = pipeline_run(micro_batches, keep, data__crop=0)
    params, stats, *_ = trees(run)
    ((x, labels),) = plain_batches(run, 1)

    @jax.jit
    def backprop(x, labels):
        loss, grads = jax.value_and_grad(loss_of(run, stats, x, labels))(params)
        return loss, grads, composed(run.network, params, stats, x, TRAIN)[1]

    some = [backprop(x[m::micro_batches], labels[m::micro_batches]) for m in range(micro_batches)]
    loss, grads, seen = jax.tree.map(lambda *parts: sum(parts), *some)
    state, figures = run.step(run.create(), next(run.feed.train()))
    assert_close(detach(run.network.params.unpack_all(state.stage_params)), descended(params, grads))
    running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new / micro_batches, stats, seen)
    assert_close(detach(run.network.stats.unpack_all(state.stage_stats)), running)
    np.testing.assert_allclose(figures["task_loss"], loss, rtol=1e-9)


def test_pipelines_that_keep_activations_or_inputs_give_the_same_numbers(x64):
    """With dropout, whose masks are of the forward pass."""
    both = [pipeline_run(4, keep, num_stages=2, **RANDOM) for keep in ("activations", "inputs")]
    found, expected = (take_steps(run, 2) for run in both)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_dry_run_tells_the_bubble():
    """(S - 1) / (M + S - 1)."""
    said = METHODS["pipeline"].advice(small_config(method="pipeline", num_stages=2, pipeline__micro_batches=8))
    assert said == "a pipeline of 2 devices waits; micro_batches=8: bubble 11 %; micro_batches=16: bubble 6 %"


# delayed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"delayed__variant": "ddg"}, {"delayed__micro_batches": 4}])
def test_delayed_with_one_stage_is_backprop(fields, x64):
    """With gradient accumulation where there are micro-batches."""
    state, _ = take_steps(small_run(num_stages=1, method="delayed", **fields), 3)
    plain = (
        {"method": "pipeline", "pipeline__micro_batches": 4}
        if "delayed__micro_batches" in fields
        else {"method": "serial"}
    )
    expected, _ = take_steps(small_run(num_stages=1, **plain), 3)
    assert_close(state.stage_params, expected.stage_params)
    assert_close(state.stage_stats, expected.stage_stats)


@pytest.mark.parametrize(
    "fields",
    [
        {"shrink": 0.5},
        {"variant": "ddg"},
        {"micro_batches": 4, "shrink": 0.5},
        {"micro_batches": 2, "weights": "newest"},
        {"micro_batches": 4, "weights": "batch", "shrink": 0.5},
        {"micro_batches": 8, "weights": "batch"},
        {"micro_batches": 4, "age_discount": 0.7},
        {"micro_batches": 4, "keep": "activations", "shrink": 0.5},
        {"micro_batches": 2, "keep": "activations", "weights": "batch"},
    ],
    ids=str,
)
def test_delayed_passes_of_each_stage_at_the_stated_weights_and_ticks(fields, x64):
    """The equations of `methods.delayed`: a history of all weights, and a vjp of each stage for each micro-batch; and
    of `optimizer.age_discount`, by stages whose gradients are late / M updates old."""
    discount = (fields := dict(fields)).pop("age_discount", 0)
    M, weights, shrink = (
        fields.get(name, usual) for name, usual in (("micro_batches", 1), ("weights", "forward"), ("shrink", 1))
    )
    steps, K, fdg = 4 + 6 // M, 4, fields.get("variant") != "ddg"
    own = {f"delayed__{name}": value for name, value in fields.items()}
    run = small_run(method="delayed", **own, data__crop=0, **plain_sgd(RATE), optimizer__age_discount=discount)
    params, stats, *_ = trees(run)
    batches = plain_batches(run, steps)
    history = [params]  # of all stages, before each step
    late = [(2 if fdg else 1) * (K - 1 - k) for k in range(K)]
    d = -(-late[0] // M)

    def version(k, tick, passed):
        """Of the weights of stage k for the micro-batch of a tick, `passed` ticks after its forward pass there."""
        return {"forward": tick + k * fdg, "newest": tick + k * fdg + passed, "batch": tick}[weights] // M

    @partial(jax.jit, static_argnames="k")
    def apply(p, x, k):
        return chain.apply(run.network.stages[k], p, stats[k], x, TRAIN)[0]

    @partial(jax.jit, static_argnames="k")
    def pull(p, x, g, labels, k):
        def to_loss(p, x):
            out = apply(p, x, k)
            return losses.task_loss(out, labels).sum() / run.config.batch_size if k == K - 1 else (out * g).sum()

        return jax.grad(to_loss, argnums=(0, 1))(p, x)

    @cache
    def entering(k, tick):
        if k == 0:
            return batches[tick // M][0][tick % M :: M]
        return apply(history[version(k - 1, tick, 0)][k - 1], entering(k - 1, tick), k=k - 1)

    @cache
    def gradients(k, tick):
        """At the weights, and at the input, times `shrink`."""
        behind = gradients(k + 1, tick)[1] if k < K - 1 else 0.0
        at, labels = history[version(k, tick, late[k])][k], batches[tick // M][1][tick % M :: M]
        grads, adjoint = pull(at, entering(k, tick), behind, labels, k=k)
        return grads, shrink * adjoint

    for t in range(steps):
        new, left = list(history[-1]), 1 - t / (2 * run.step_inputs.steps_per_epoch)
        rates = [RATE * (1 + late[k] / M) ** -(discount * left) for k in range(K)]
        if discount:
            np.testing.assert_allclose(run.learning_rates(t + 1)["stage_learning_rate"], rates)
        for k in range(K):
            for tick in range((t + 1) * M):
                used = tick // M + d if weights == "batch" else (tick + k * fdg + late[k]) // M
                if used == t:
                    new[k] = descended(new[k], gradients(k, tick)[0], rates[k])
        history.append(tuple(new))
    for ours, expected in zip(after(run, steps), history[1:], strict=True):
        assert_close(ours, expected)
    first = jax.tree.leaves(history[-1][0])[0]
    assert not np.array_equal(first, jax.tree.leaves(params[0])[0]), "stage 0 has learnt something"


def test_one_version_a_batch_is_backprop_with_accumulation_some_updates_late(x64):
    """d = ceil(2 * 3 / 4) = 2 updates, in every stage."""
    steps, M, d = 6, 4, 2
    fields = {"delayed__micro_batches": M, "delayed__weights": "batch", "data__crop": 0}
    run = small_run(method="delayed", **fields, **plain_sgd(RATE))
    assert {age.weights for ages in METHODS["delayed"].ages(run.config) for age in ages} == {d}
    params, stats, *_ = trees(run)
    history = [params]
    gradient = jax.jit(lambda params, x, labels: jax.grad(loss_of(run, stats, x, labels))(params))
    found = []
    for t, (x, labels) in enumerate(plain_batches(run, steps)):
        parts = [gradient(history[t], x[m::M], labels[m::M]) for m in range(M)]
        found.append(jax.tree.map(lambda *grads: sum(grads), *parts))
        history.append(descended(history[t], found[t - d]) if t >= d else history[t])
    for ours, expected in zip(after(run, steps), history[1:], strict=True):
        assert_close(ours, expected)


def test_ages_of_delayed_gradients():
    """K = 4: in micro-batches since they entered, and in updates since the weights they were taken at."""

    def ages(**fields):
        return METHODS["delayed"].ages(
            small_config(method="delayed", **{f"delayed__{n}": v for n, v in fields.items()})
        )

    assert ages() == [[(6, 6)], [(5, 4)], [(4, 2)], [(3, 0)]]
    assert ages(variant="ddg") == [[(3, 3)], [(2, 2)], [(1, 1)], [(0, 0)]]
    assert ages(micro_batches=4)[0] == [(9, 2), (8, 2), (7, 1), (6, 1)]
    assert ages(micro_batches=4)[2] == [(7, 1), (6, 1), (5, 0), (4, 0)]
    assert ages(micro_batches=4, weights="newest")[0] == [(9, 0), (8, 0), (7, 0), (6, 0)]
    assert ages(micro_batches=4, weights="batch")[1] == [(11, 2), (10, 2), (9, 2), (8, 2)]


# local ----------------------------------------------------------------------------------------------------------------


def residues(chains, params, stats, x):
    """Mean squares of what the blocks of a chain add to their shortcuts, layer by layer."""
    total = 0.0
    for unit, p, s in zip(chains.units, chain.unstack(chains, params), chain.unstack(chains, stats), strict=True):
        if unit.name.startswith("block"):
            y, _ = layers.conv_norm(p["first"], s["first"], x, TRAIN, unit.stride)
            y, _ = layers.conv_norm(p["second"], s["second"], jax.nn.relu(y), TRAIN)
            total += (y**2).mean()
        x, _ = unit.apply(p, s, x, TRAIN)
    return total


@pytest.mark.parametrize(
    ("classifier", "tau", "units"),
    [
        ("own", 0.0, [["head"], ["block-4", "head"], ["head"]]),
        ("sampled", 0.3, [["block-16/4", "head"], ["block-16/4", "head"], ["block-16/2", "head"]]),
        (
            "momentum",
            0.3,
            [["mean of block-4", "head"], ["block-4", "mean of block-8/2", "head"], ["mean of block-16/2", "head"]],
        ),
    ],
)
def test_local_is_every_stage_by_itself_on_inputs_of_the_step_before(classifier, tau, units, x64):
    """And the running means are of the weights that the stages behind began each step with; as in a later phase."""
    steps, K = 6, 4
    fields = {"local__classifier": classifier, "local__residue": tau}
    run = small_run(method="local", data__crop=0, **fields, **plain_sgd(RATE))
    params, stats, *_ = trees(run)
    own = classifiers(run.network, run.config.local)
    assert [[unit.name.replace("classifier-10", "head") for unit in c.units] for c in own.chains] == [*units, []]
    carry = run.create().carry
    heads, head_stats = detach((own.params.unpack_all(carry.params), own.stats.unpack_all(carry.stats)))
    means = detach(own.means.unpack_all(carry.means))
    batches = plain_batches(run, steps)

    @partial(jax.jit, static_argnames="k")
    def learn(p, c, mean, x, labels, k):
        """Gradients of stage k's loss behind its classifier, and its output."""

        def loss(p, c):
            output, _ = chain.apply(run.network.stages[k], p, stats[k], x, TRAIN)
            if mean:
                c = *c[:-2], {**c[-2], **mean}, c[-1]
            logits, _ = chain.apply(own.chains[k], c, head_stats[k], output, TRAIN)
            more = residues(run.network.stages[k], p, stats[k], x) if tau else 0.0
            return losses.task_loss(logits, labels).mean() + tau * more, output

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(p, c)

    params, heads, means = list(params), list(heads), list(means)
    lam = {}  # (stage, step of the batch) -> input
    history = []
    for t in range(steps):
        lam[0, t], began, d = batches[t][0], list(params), min(0.999, (1 + t) / (10 + t))
        for k in range(K):  # in any order: nothing of this step is read by another stage in it
            m = t - k
            if m < 0:
                continue
            grads, lam[k + 1, m] = learn(params[k], heads[k], means[k], lam[k, m], batches[m][1], k=k)
            params[k], heads[k] = descended(params[k], grads[0]), descended(heads[k], grads[1])
        for k, mean in enumerate(means):
            if mean:
                first = jax.tree.map(lambda leaf: leaf[:1], began[k + 1][0])
                means[k] = {"mean": jax.tree.map(lambda m, w, d=d: d * m + (1 - d) * w, mean["mean"], first)}
        history.append(tuple(params))
    for ours, expected in zip(after(run, steps, begin=1000), history, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize(
    ("units", "shape", "cut", "blocks", "drawn"),
    [
        (resnet(depth=26, width=4, classes=10), (14, 14, 3), 2, 1, ["block-16/4"]),
        (resnet(depth=26, width=4, classes=10), (14, 14, 3), 2, 3, ["block-8/2", "block-8", "block-16/2"]),
        (resnet(depth=8, width=4, classes=10), (8, 8, 3), 2, 9, ["block-8/2", "block-16/2"]),
        (preact_resnet(depth=164, width=4, classes=10), (8, 8, 3), 2, 1, ["preact-bottleneck-16/4"]),
        (imagenet_resnet(depth=50, width=4, classes=10), (32, 32, 3), 3, 2, ["bottleneck-16/4", "bottleneck-32/2"]),
    ],
)
def test_units_are_sampled_evenly_and_put_out_what_they_do_in_the_network(units, shape, cut, blocks, drawn):
    """Behind the first block; all of them where there are not so many."""
    network = cut_network(units, shape, num_stages=2, cuts=(cut,))
    own = classifiers(network, LocalConfig("sampled", blocks)).chains[0]
    assert [unit.name for unit in own.units[:-1]] == drawn
    assert own.units[-1] == units[-1]
    assert own.shapes[-2:] == network.chain.shapes[-2:]


POOLS = {"model": {"function": "test_methods:pools"}, "num_stages": 2, "cuts": (1,)}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_stages": 5, "mesh__stage": 1, "local__classifier": "momentum"}, "stage 4 is the network's head alone"),
        (POOLS | {"local__classifier": "sampled"},
         r"unit 2 \(max_pool/2\) drawn for stage 0: it makes \(4, 4, 4\) of \(8, 8, 4\): expected \(2, 2, 4\)"),
        (POOLS | {"local__residue": 0.1}, "no unit of the network has residues: expected residual blocks"),
    ],
)  # fmt: skip
def test_local_losses_that_do_not_fit_the_network(fields, message):
    with pytest.raises(ValueError, match=message):
        small_run(method="local", **fields)


def pools(classes):
    return ConvBlock(4, 1, 3), MaxPool(), MaxPool(), Classifier(classes)


def test_local_gradients_do_not_cross_stages(x64):
    """Changing W_i leaves the next update of every other stage exactly as it was; and so does its classifier."""
    run = small_run(method="local", **plain_sgd())
    batches = run.feed.train()
    arrays = None
    state = run.create()
    for _ in range(4):
        state, _ = run.step(state, next(batches))
    batch, arrays = next(batches), resume.snapshot(run, state)

    def updates(i):
        state, _, _ = resume.restore(run, arrays)
        if i is not None:
            kernel = state.stage_params["kernel"].at[i].mul(1.5)
            state = state.replace(stage_params=state.stage_params | {"kernel": kernel})
        before = jax.device_get(state.stage_params["kernel"])
        return jax.device_get(run.step(state, batch)[0].stage_params["kernel"]) - before

    base = updates(None)
    for i in range(4):
        for k, (changed, was) in enumerate(zip(updates(i), base, strict=True)):
            assert np.array_equal(changed, was) == (k != i), f"stage {k}, weights of {i}"


def on_grid(x, grid):
    """Means over windows, so that grid x grid are left; x itself without a grid."""
    if grid is None:
        return x
    b, h, w, c = x.shape
    return x.reshape(b, grid, h // grid, grid, w // grid, c).mean((2, 4))


@pytest.mark.parametrize(
    "grid, beta, weight, tied",
    [
        pytest.param(None, 0.7, 0.3, False, marks=pytest.mark.slow),
        (2, 0.7, 0.3, False),
        pytest.param(2, 0.0, 0.0, False, marks=pytest.mark.slow),
        (2, 0.7, 0.3, True),
    ],
)
def test_coarse_adjoint_is_every_stage_by_itself_before_a_shared_tail(grid, beta, weight, tied, x64):
    """Stages and AuxNet, on inputs of the step before: by hand, in any order of the stages."""
    steps, K = 6, 4
    fields = {"penalty__aux": beta, "aux__task_weight": weight, "data__crop": 0, **plain_sgd(RATE)}
    if tied:  # to the last stage's first and third unit, which change the shape
        fields |= {"model": {"depth": 14, "width": 4}, "cuts": (2, 3, 5), "aux__blocks_per_stage": 0}
    run = small_run(method="coarse_adjoint", aux__tied=tied, **fields, **({} if grid is None else {"aux__grid": grid}))
    params, stats, omega, aux_stats = trees(run)
    assert len(omega) == len(aux_stats) == K - tied
    tails = [
        (chain.make_chain(p.units, on_grid(jnp.ones((1, *p.in_shape)), grid).shape[1:]))
        for p in run.network.aux_net[1:]
    ]
    first_omega, network, batches = omega, run.network, plain_batches(run, steps)

    if tied:
        assert [unit.name for unit in network.stages[-1].units] == ["block-16/2", "block-16", "classifier-10"]

    @partial(jax.jit, static_argnames="k")
    def learn(p, omega, end, x, labels, k):
        """Gradients of stage k's two losses for its parameters, the AuxNet's and the last stage's, and its output."""

        def own(p):
            return chain.apply(network.stages[k], p, stats[k], x, TRAIN)[0]

        def tail(omega, end, output):
            output = output if k == K - 1 else on_grid(output, grid)
            for j in range(k + 1, K):
                own = (omega[j], aux_stats[j]) if j < len(omega) else ((end[0], end[2]), (stats[-1][0], stats[-1][2]))
                output, _ = chain.apply(tails[j - 1], *own, output, TRAIN)
            return losses.task_loss(output, labels).mean()

        output = own(p)

        def coarse(omega):
            if k in (0, len(omega)):
                return 0.0
            made, _ = chain.apply(tails[k - 1], omega[k], aux_stats[k], on_grid(x, grid), TRAIN)
            if k == K - 1:
                return weight * losses.task_loss(made, labels).mean()
            return beta * ((made - on_grid(output, grid)) ** 2).mean()

        loss = jax.grad(lambda p, omega, end: tail(omega, end, own(p)) + coarse(omega), argnums=(0, 1, 2))
        return loss(p, omega, end), output

    params, lam, history = list(params), {}, []
    for t in range(steps):
        lam[0, t], learnt, end = batches[t][0], [], params[-1]
        for k in reversed(range(K)):
            m = t - k
            if m < 0:
                continue
            grads, lam[k + 1, m] = learn(params[k], omega, end, lam[k, m], batches[m][1], k=k)
            params[k] = descended(params[k], grads[0])
            params[-1] = descended(params[-1], grads[2])
            learnt.append(grads[1])
        for grads in learnt:
            omega = descended(omega, grads)
        history.append((tuple(params), omega))
    state, feed = run.create(), run.feed.train()
    for expected, expected_omega in history:
        state, figures = run.step(state, next(feed))
        assert_close(detach(network.params.unpack_all(state.stage_params)), expected)
        assert_close(detach(state.aux_params), detach(expected_omega))
    assert_close(detach(state.aux_params[0]), first_omega[0])
    m = steps - 1 - 1  # the batch of stage 1 in the last step
    made, _ = chain.apply(tails[0], history[-2][1][1], aux_stats[1], on_grid(lam[1, m], grid), TRAIN)
    aim = on_grid(lam[2, m], grid)
    expected_error = ((made - aim) ** 2).mean() / (aim**2).mean() if beta else 0.0
    assert_close(figures["coarse_error"][1], expected_error)
    assert figures["coarse_error"][0] == figures["coarse_error"][3] == 0


def test_coarse_adjoint_of_one_stage_is_backprop(x64):
    fields = {"num_stages": 1, "data__crop": 0, **plain_sgd(RATE)}
    ours, serial = (after(small_run(method=method, **fields), 2) for method in ("coarse_adjoint", "serial"))
    assert_close(ours, serial)


def test_coarse_adjoint_has_no_path_through_the_auxnet_to_test():
    """G_0 learns nothing, so what the AuxNet makes of an image says nothing."""
    run = small_run(method="coarse_adjoint", eval__calibration_batches=1)
    result = run.evaluate(run.create(), run.feed)
    assert result.aux_path_accuracy is result.aux_head_accuracy is None
    assert 0 < result.test_accuracy < 1


# state ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fdg", "momentum", pytest.param("coarse_adjoint", marks=pytest.mark.slow)])
def test_what_is_under_way_goes_on_on_another_mesh(name, x64):
    run, other = (small_run(**STAGED[name], mesh__stage=s) for s in (4, 2))
    batches = run.feed.train()
    state = run.create()
    for _ in range(4):
        state, _ = run.step(state, next(batches))
    restored, fresh, left = resume.restore(other, resume.snapshot(run, state))
    assert (fresh, left) == ([], [])
    assert_close(on_host(restored), on_host(state))
    others = other.feed.train()
    others.set_state(batches.get_state())
    state, figures = run.step(state, next(batches))
    restored, other_figures = other.step(restored, next(others))
    assert_close(on_host(restored), on_host(state))
    assert_close(jax.device_get(other_figures), jax.device_get(figures))


def test_unset_a_mesh_is_of_the_devices_that_a_method_uses():
    for name, entry in METHODS.items():
        config = small_config(method=name)
        assert config.mesh_shape == ((1 if entry.devices == "one" else 4), 1)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"method": "pipeline", "pipeline__micro_batches": 3}, "pipeline.micro_batches=3: expected a divisor of"),
        ({"method": "delayed", "delayed__micro_batches": 3}, "delayed.micro_batches=3: expected a divisor of"),
        (
            {"method": "delayed", "delayed__variant": "ddg", "delayed__micro_batches": 2},
            "variant=ddg: expected 1, forward and inputs",
        ),
        ({"delayed__shrink": 0.0}, "delayed.shrink=0.0: expected > 0 and <= 1; 1 is none"),
        ({"local__blocks": -1}, "local.blocks=-1: expected at least 0"),
        (
            {"method": "local", "local__classifier": "sampled", "local__blocks": 0},
            "blocks=0 with local.classifier=sampled",
        ),
        ({"method": "serial", "serial__deep_supervision": -1.0}, "serial.deep_supervision=-1.0: expected at least 0"),
        (
            {"method": "serial", "serial__deep_supervision": 1.0, "num_stages": 1},
            "with num_stages=1: expected at least 2",
        ),
        (
            {"method": "data_parallel", "serial__deep_supervision": 1.0, "local__classifier": "momentum"},
            "deep_supervision=1.0 with local.classifier=momentum: expected own or sampled",
        ),
        (
            {"method": "serial", "serial__deep_supervision": 1.0, "local__residue": 0.1},
            "deep_supervision=1.0 with local.residue=0.1: expected 0",
        ),
        ({"method": "layer_parallel", "aux__tied": True}, "aux.tied=True with method=layer_parallel, whose AuxNet has"),
        (
            {"phases__methods": ("serial", "nothing"), "phases__epochs": (1.0,)},
            "phases.methods='nothing': expected one",
        ),
        ({"phases__methods": ("serial", "local")}, r"phases.epochs=\(\): expected the epoch at which each method"),
        ({"phases__methods": ("serial", "local"), "phases__epochs": (2.0,)}, "increasing, between 0 and num_epochs=2"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


@pytest.mark.parametrize(
    ("fields", "standardised"),
    [
        ({"method": "layer_parallel"}, True),
        ({"method": "layer_parallel", "standardise": False}, False),
        ({"method": "serial", "standardise": True}, True),
        ({"method": "serial", "phases__methods": ("serial", "layer_parallel"), "phases__epochs": (1.0,)}, True),
        *(({"method": name}, False) for name in METHODS if name != "layer_parallel"),
    ],
)
def test_only_methods_with_generated_inputs_change_the_network(fields, standardised):
    """Unset, interfaces are standardised where the AuxNet generates inputs; otherwise the network is as published."""
    run = small_run(**fields)
    assert (run.network.stages[0].units[-1] == STANDARDISE) == standardised
    assert (sum((stage.units for stage in run.network.stages), ()) == run.network.chain.units) == (not standardised)


def test_phases_share_a_mesh():
    phases = {"phases__methods": ("serial", "layer_parallel"), "phases__epochs": (1.0,)}
    assert small_config(method="serial", **phases).mesh_shape == (4, 1)


def test_state_of_data_parallel_is_replicated():
    state = small_run(method="data_parallel", mesh__data=2).create()
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state)} == {P()}


@pytest.mark.parametrize(
    "fields",
    [
        *({"method": name} for name in METHODS),
        {"exchange__stale": True},
        {"method": "coarse_adjoint", "aux__tied": True},
    ],
    ids=str,
)
def test_metrics_are_those_that_the_method_names(fields):
    """And run over what it says: numbers, stages or interfaces."""
    run = small_run(dry_run=True, mesh__stage=1, **fields)
    _, found = runs.trace(run).out_info
    lengths = {"": (), "stage": (4,), "interface": (3,)}
    named = METHODS[run.config.method].metrics
    assert {name: leaf.shape for name, leaf in found.items()} == {name: lengths[axis] for name, axis in named.items()}


def test_a_metric_that_is_not_finite_is_blamed_on_what_its_list_runs_over():
    named = METHODS["coarse_adjoint"].metrics
    with pytest.raises(NonFiniteError, match="coarse_error at stage 2 is nan in step 7"):
        check_finite(7, {"coarse_error": np.array([0.0, 1.0, np.nan])}, named)
    named = METHODS["layer_parallel"].metrics
    with pytest.raises(NonFiniteError, match="relative_violation at interface 2 is inf"):
        check_finite(7, {"relative_violation": np.array([0.0, np.inf])}, named)
    with pytest.raises(NonFiniteError, match="task_loss is nan"):
        check_finite(7, {"task_loss": np.array(np.nan)}, named)
    with pytest.raises(
        NonFiniteError, match="task_loss is nan in step 1; before any update, so it is not the learning"
    ):
        check_finite(1, {"task_loss": np.array(np.nan)}, named)
