"""Modules of flax.linen, flax.nnx and equinox as units: the same numbers as their libraries', and as on one device."""

import contextlib
import re
from pathlib import Path

import adapt_nets as nets
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_nets import WIDTH, eqx
from flax import nnx
from flax.core import freeze
from helpers import assert_close, on_host, small_run, take_steps, trees
from jax.extend.core import jaxprs_in_params

from lpjax import adapt
from lpjax.errors import BadInput
from lpjax.export import from_run
from lpjax.network.network import composed
from lpjax.network.packing import kind
from lpjax.nn import chain
from lpjax.nn.chain import Mode, make_chain
from lpjax.nn.count import unit_flops
from lpjax.training import resume

needs_equinox = pytest.mark.skipif(eqx is None, reason="equinox is not installed")
LIBRARIES = ["linen", "nnx", pytest.param("equinox", marks=needs_equinox)]
SHAPES = {"linen": (8, 8, WIDTH), "nnx": (8, 8, WIDTH), "equinox": (WIDTH, 8, 8)}
TRAIN, TEST = Mode(train=True), Mode(train=False)


@contextlib.contextmanager
def defaults():
    """Around a library's own computation."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def keys(count):
    return jax.random.split(jax.random.key(7), count)


def random_like(tree, seed=0):
    """Positive, and unlike what anything is initialised by."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape)), tree)


def examples(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# runs -----------------------------------------------------------------------------------------------------------------


def resnet_run(library, **fields):
    model = {"function": f"adapt_nets:{library}_resnet"}
    aux = {"function": "own_units", "blocks_per_stage": 1}
    run = small_run(model=model, aux=aux, method="coarse_adjoint", **fields)
    assert [repeat.count for repeat in run.network.chain.repeats] == [1, 3, 1]
    return run


@pytest.mark.parametrize("library", LIBRARIES)
def test_two_stages_give_the_numbers_of_one_device_before_and_after_a_stop(library, x64):
    """With dropout, and the batch split over two devices in each stage."""
    expected, expected_figures = take_steps(resnet_run(library, num_stages=2, mesh__stage=1), 4)
    run = resnet_run(library, num_stages=2, mesh__stage=2, mesh__data=2)
    state, batches = run.create(), run.feed.train()
    before = trees(run)[0]
    for step in range(4):
        if step == 2:
            state, fresh, left = resume.restore(run, resume.snapshot(run, state))
            assert (fresh, left) == ([], [])
        state, figures = run.step(state, next(batches))
    assert_close(on_host(state), expected)
    assert_close(jax.device_get(figures), expected_figures[-1])
    after = run.network.params.unpack_all(state.stage_params)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, jax.device_get(after))
    assert min(jax.tree.leaves(moved)) > 0, "every weight is trained"


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_exported_program_computes_the_composed_network(library):
    run = resnet_run(library, mesh__stage=1)
    params, stats = random_like(trees(run)[:2])
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)), jnp.uint8)
    expected, _ = composed(run.network, params, stats, run.step_inputs.normalised(image), TEST)
    actual = from_run.make_program(run, params, stats).call(image)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    names = from_run.named_arrays(run, *jax.device_get((params, stats)))
    assert sum(name.endswith(".kernel") for name in names) == 8


PAGE = Path(__file__).parent.parent / "docs/own_network.md"
SAMPLES = dict(re.findall(r'```python title="(\w+)_net.py"\n(.*?)```', PAGE.read_text(), re.DOTALL))


@pytest.mark.parametrize("library", LIBRARIES)
def test_samples_of_the_docs(library):
    assert len(SAMPLES) == len(LIBRARIES)
    names = {}
    exec(compile(SAMPLES[library], f"{library}_net.py", "exec"), names)
    network = make_chain(names["network"](classes=10), (8, 8, 1))
    assert max(repeat.count for repeat in network.repeats) == 6
    flops = [unit_flops(unit, shape) for unit, shape in zip(network.units, network.shapes[:-1], strict=True)]
    assert sum(flops) > 6e4, "and none where axes are only moved"
    params, stats = chain.init(network, jax.random.key(0))
    y, _ = chain.apply(network, params, stats, examples(3, 8, 8, 1).astype("float32"), TRAIN._replace(keys=keys(3)))
    assert y.shape == (3, 10)


# against the libraries ------------------------------------------------------------------------------------------------


def linen_output(params, stats, x, train):
    module = nets.LinenBlock(rate=0.0)
    y, new = module.apply({"params": params, "batch_stats": stats}, x, train, mutable=["batch_stats"])
    return y, new["batch_stats"]


def nnx_output(params, stats, x, train):
    module = nets.NnxBlock(rate=0.0, rngs=nnx.Rngs(0))
    graph, *states, others = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    for state, values in zip(states, (params, stats), strict=True):
        nnx.replace_by_pure_dict(state, values)
    module = nnx.merge(graph, *states, others)
    y = (module.train if train else module.eval)() or module(x)
    return y, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def equinox_output(params, stats, x, train):
    module, state = eqx.nn.make_with_state(nets.EquinoxBlock)(rate=0.0, key=jax.random.key(0))
    norms = lambda m: (m.first_norm, m.norms[0])  # noqa: E731
    for norm, own in zip(norms(module), (stats["first_norm"], stats["norms"]["0"]), strict=True):
        state = state.set(norm.batch_counter, jnp.array(10**6))
        state = state.set(norm.batch_state_index, (own["mean"], own["var"]))
    leaves = lambda m: (m.first_norm.weight, m.first_norm.bias, m.first.weight, m.second.weight, m.second.bias)  # noqa: E731
    norm = params["first_norm"]
    values = (
        norm["scale"],
        norm["bias"],
        params["first"]["kernel"],
        params["second"]["kernel"],
        params["second"]["bias"],
    )
    module = eqx.nn.inference_mode(eqx.tree_at(leaves, module, values), not train)
    call = jax.vmap(lambda x: module(x, state, key=None), axis_name="batch", out_axes=(0, None))
    y, state = call(x)
    first, second = ({"mean": m, "var": v} for m, v in (state.get(n.batch_state_index) for n in norms(module)))
    return y, {"first_norm": first, "norms": {"0": second}}


OUTPUTS = {"linen": linen_output, "nnx": nnx_output, "equinox": equinox_output}
BLOCKS = {
    "linen": lambda rate: nets.LinenBlock(rate),
    "nnx": lambda rate: lambda rngs: nets.NnxBlock(rate, rngs=rngs),
    "equinox": lambda rate: lambda key: nets.EquinoxBlock(rate, key=key),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_outputs_and_gradients_are_the_librarys_own(library, train, x64):
    """The library's statistics in training are a running average of momentum 0.99; a unit's are the batch's."""
    (unit,) = adapt([BLOCKS[library](0.0)])
    params, stats = random_like(unit.init(jax.random.key(0), SHAPES[library]))
    x = examples(6, *SHAPES[library])

    def value(output):
        def loss(params, x):
            y, new = output(params, stats, x, train)
            return jnp.square(y).sum(), (y, new)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (_, (y, new)), grads = value(lambda params, stats, x, train: unit.apply(params, stats, x, Mode(train)))
    with defaults():
        (_, (own_y, own_new)), own_grads = value(OUTPUTS[library])
    assert_close((y, grads), (own_y, own_grads), rtol=1e-6, atol=1e-6)
    running = jax.tree.map(lambda old, batch: 0.99 * old + 0.01 * batch, stats, new) if train else stats
    assert_close(running, own_new, rtol=1e-6)
    assert train == any(abs(a - b).max() > 0.1 for a, b in zip(*map(jax.tree.leaves, (new, stats)), strict=True))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"epsilon": 0.1}, {"use_scale": False}, {"use_bias": False}, {"axis": 1}, {"axis": -2}], ids=str
)
def test_options_of_batch_norm(options, train, x64):
    norm = nn.BatchNorm(**options)
    (unit,) = adapt([norm])
    params, stats = random_like(unit.init(jax.random.key(0), (4, 5, 6)))
    x = 1 + examples(3, 4, 5, 6)
    y, _ = unit.apply(params, stats, x, Mode(train))
    with defaults():
        own = norm.apply({"params": params, "batch_stats": stats}, x, not train, mutable=["batch_stats"])[0]
    assert_close(y, own)


def test_a_frozen_batch_norm_keeps_its_statistics(x64):
    (unit,) = adapt([nn.BatchNorm(use_running_average=True)])
    params, stats = random_like(unit.init(jax.random.key(0), (4,)))
    x = examples(6, 4)
    (y, new), (tested, _) = (unit.apply(params, stats, x, mode) for mode in (TRAIN, TEST))
    assert_close((y, new), (tested, stats), rtol=0, atol=0)


# dropout --------------------------------------------------------------------------------------------------------------

DROPOUTS = {
    "linen": lambda: nn.Dropout(0.25),
    "nnx": lambda: lambda rngs: nnx.Dropout(0.25, rngs=rngs),
    "equinox": lambda: lambda key: eqx.nn.Dropout(0.25),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_mask_is_the_examples_own(library):
    (unit,) = adapt([DROPOUTS[library]()])
    x, own = jnp.ones((8, 500)), keys(8)
    order = np.random.default_rng(0).permutation(8)

    def masked(keys, position=0, train=True):
        return unit.apply({}, {}, x, Mode(train, keys=keys, position=position))[0]

    y = masked(own)
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert 0.2 < float((y == 0).mean()) < 0.3
    np.testing.assert_array_equal(masked(own[order]), y[order])
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(masked(own, position=1), y)
    for nothing in masked(None), masked(own, train=False):
        np.testing.assert_array_equal(nothing, x)


def test_dropouts_of_a_unit_differ_and_broadcast_dims_share():
    class Three(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.stack([nn.Dropout(0.5)(x), nn.Dropout(0.5)(x), nn.Dropout(0.5, (-1,))(x)], axis=1)

    (unit,) = adapt([Three()])
    y, _ = unit.apply({}, {}, jnp.ones((4, 20, 30)), Mode(train=True, keys=keys(4)))
    assert not np.array_equal(y[:, 0], y[:, 1])
    assert np.ptp(y[:, 2], axis=-1).max() == 0
    assert set(np.unique(y[:, 2])) == {0.0, 2.0}


# initial weights and equality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_are_drawn_from_the_seed_for_each_position(library):
    block = BLOCKS[library](0.5)
    network = make_chain(adapt([block, block, BLOCKS[library](0.0)]), SHAPES[library])
    assert [repeat.count for repeat in network.repeats] == [2, 1], "other settings make another unit"
    (params, _), (stats, _) = chain.init(network, jax.random.key(3))
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(params) if kind(path) == "kernel"]
    assert len(kernels) == 2
    for first, second in kernels:
        assert not np.array_equal(first, second)
    alone, _ = network.units[1].init(jax.random.fold_in(jax.random.key(3), 1), SHAPES[library])
    assert_close(jax.tree.map(lambda leaf: leaf[1], params), alone, rtol=0, atol=0)
    assert {float(abs(leaf - 1).max() * abs(leaf).max()) for leaf in jax.tree.leaves(stats)} == {0.0}


@pytest.mark.parametrize("library", ["nnx", LIBRARIES[2]])
def test_weights_of_a_module_are_the_initial_ones(library):
    """Of equal modules made apart, too, which are one loop."""
    if library == "nnx":
        modules = [nnx.Linear(4, 4, rngs=nnx.Rngs(seed)) for seed in range(3)]
        expected = [{"kernel": m.kernel[...], "bias": m.bias[...]} for m in modules]
        modules = nnx.Sequential(*modules)
    else:
        modules = [eqx.nn.Linear(4, 4, key=jax.random.key(seed)) for seed in range(3)]
        expected = [{"kernel": m.weight, "bias": m.bias} for m in modules]
        modules = eqx.nn.Sequential(modules)
    network = make_chain(adapt(modules), (4,))
    assert [repeat.count for repeat in network.repeats] == [3]
    params, _ = chain.init(network, jax.random.key(0))
    assert_close(chain.unstack(network, params), expected, rtol=0, atol=0)
    y, _ = chain.apply(network, params, ({},), jnp.ones((2, 4)), TEST)
    with defaults():
        own = modules(jnp.ones((2, 4))) if library == "nnx" else jax.vmap(modules)(jnp.ones((2, 4)))
    assert_close(y, own, rtol=1e-6)


def test_weights_of_modules_in_stages_that_share_a_program():
    run = small_run(model={"function": "adapt_nets:trained_resnet"}, num_stages=5, method="serial", mesh__stage=1)
    assert run.network.kinds == ((0,), (1, 2, 3), (4,))
    params = trees(run)[0]
    for seed in range(3):
        block = nets.NnxBlock(rngs=nnx.Rngs(seed))
        np.testing.assert_array_equal(params[seed + 1][0]["first"]["kernel"][0], block.first.kernel[...])


def test_variables_of_a_linen_sequential():
    """Parameters and statistics; its outputs before training are the module's own."""
    layers = [nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=True), nn.relu, nn.Conv(4, (3, 3))]
    module = nn.Sequential([*layers, nn.Conv(4, (3, 3))])
    x = examples(3, 8, 8, 1).astype("float32")
    variables = random_like(module.init(jax.random.key(0), x))
    for given in (variables, freeze(variables)):
        network = make_chain(adapt((module, given)), (8, 8, 1))
        params, stats = chain.init(network, jax.random.key(0))
        assert_close(chain.apply(network, params, stats, x, TEST)[0], module.apply(variables, x), rtol=1e-5)
    assert [repeat.count for repeat in network.repeats] == [1, 1, 1, 2]
    with pytest.raises(
        BadInput, match=r"unit 1 \(BatchNorm\).*variables have batch_stats/mean of shape None: expected"
    ):
        make_chain(adapt((module, {"params": variables["params"]})), (8, 8, 1))
    first = variables["params"]["layers_0"]
    with pytest.raises(BadInput, match=r"params/kernel of shape \(3, 3, 1, 4\): expected \(3, 3, 2, 4\)"):
        make_chain(adapt([(nn.Conv(4, (3, 3)), {"params": first})]), (8, 8, 2))


@needs_equinox
def test_statistics_of_an_equinox_module_are_those_of_its_state(x64):
    layers = [eqx.nn.Lambda(jnp.tanh), eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode="batch")]
    module, state = eqx.nn.make_with_state(eqx.nn.Sequential)(layers)
    x = 2 + examples(50, 3)
    apply = jax.vmap(module, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    with defaults():
        for _ in range(2):
            _, state = apply(x, state)
    network = make_chain(adapt((module, state)), (3,))
    params, stats = chain.init(network, jax.random.key(0))
    assert_close(chain.unstack(network, stats)[1]["mean"], jnp.tanh(x).mean(0))
    apply = jax.vmap(eqx.nn.inference_mode(module), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    with defaults():
        own, _ = apply(x, state)
    assert_close(chain.apply(network, params, stats, x, TEST)[0], own)


class LinenFrozen(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (x.shape[-1], 4))
        return nn.Dense(4)(nn.tanh(x @ jax.lax.stop_gradient(kernel)))


class NnxFrozen(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 4, use_bias=False, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(x @ jax.lax.stop_gradient(self.first.kernel[...])))


@pytest.mark.parametrize("module", [LinenFrozen(), lambda rngs: NnxFrozen(rngs)], ids=["linen", "nnx"])
def test_what_a_module_freezes_does_not_decay(module):
    network = make_chain(adapt([module]), (4,))
    params, stats = chain.init(network, jax.random.key(0))
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    assert sorted(map(kind, paths)) == ["kernel", "other", "other"]
    y, _ = chain.apply(network, params, stats, jnp.ones((2, 4)), TEST)
    (frozen,) = (leaf for path, leaf in jax.tree.leaves_with_path(params) if "frozen" in str(path))
    (kernel,) = (leaf for path, leaf in jax.tree.leaves_with_path(params) if kind(path) == "kernel")
    np.testing.assert_allclose(y, jnp.tanh(jnp.ones((2, 4)) @ frozen[0]) @ kernel[0], rtol=1e-5)


def test_what_a_module_calls_frozen_is_its_own():
    """A module of that name, whose kernel is frozen, and parameters of that name, alone and beside others."""

    class Scale(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("frozen", nn.initializers.constant(2.0), (1, 4))

    class Stopped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ jax.lax.stop_gradient(self.param("kernel", nn.initializers.normal(), (4, 4)))

    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Scale()(Stopped(name="frozen")(nn.Dense(4)(x)))

    for module in (Scale(), Named()):
        (unit,) = adapt([module])
        x = examples(2, 4)
        params, stats = unit.init(jax.random.key(0), (4,))
        y, _ = unit.apply(params, stats, x, TEST)
        own = dict(params)
        if isinstance(module, Named):
            own["frozen"] = {"kernel": params["frozen"]["kernel"]["frozen"]}
        np.testing.assert_allclose(y, module.apply({"params": own}, x), rtol=1e-6)


def test_linen_modules_of_equal_settings_are_equal():
    class Nested(nn.Module):
        parts: tuple
        table: dict

        @nn.compact
        def __call__(self, x):
            return nn.Sequential([nn.Dense(4), nn.BatchNorm(), *self.parts])(x) * self.table["a"]

    def nested(factor):
        return Nested([nn.Dense(4), nn.relu], {"a": factor})

    network = make_chain(adapt([nested(2), nested(2), nested(3)]), (4,))
    assert [repeat.count for repeat in network.repeats] == [2, 1]
    assert network.units[0] is network.units[1]


@needs_equinox
def test_what_decays_in_flax_decays_in_equinox():
    class Layers(eqx.Module):
        layers: list

        def __init__(self, *, key):
            self.layers = [
                eqx.nn.Linear(2, 2, key=key),
                eqx.nn.LayerNorm((2, 2)),
                eqx.nn.Conv1d(2, 2, 3, key=key),
                eqx.nn.GRUCell(2, 2, key=key),
                eqx.nn.Embedding(2, 2, key=key),
            ]

        def __call__(self, x):
            return x * sum(leaf.sum() for leaf in jax.tree.leaves(eqx.filter(self.layers, eqx.is_inexact_array)))

    (unit,) = adapt([lambda key: Layers(key=key)])
    params, _ = unit.init(jax.random.key(0), (2,))
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    decayed = {jax.tree_util.keystr(path[1:], simple=True, separator=".") for path in paths if kind(path) == "kernel"}
    assert decayed == {"0.kernel", "2.kernel", "3.weight_ih.kernel", "3.weight_hh.kernel"}
    assert {"weight"} <= {path[-1].key for path in paths}, "of LayerNorm and Embedding"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_module_computes_in_the_dtype_of_its_input(library):
    (unit,) = adapt([BLOCKS[library](0.5)])
    params, stats = random_like(unit.init(jax.random.key(0), SHAPES[library]))
    x = examples(4, *SHAPES[library])
    half = x.astype(jnp.bfloat16)
    y, new = unit.apply(params, stats, half, TRAIN)
    assert (y.dtype, {leaf.dtype for leaf in jax.tree.leaves(new)}) == (jnp.bfloat16, {jnp.dtype("float32")})
    expected, _ = unit.apply(params, stats, x, TRAIN)
    np.testing.assert_allclose(y.astype(float), expected, rtol=0.1, atol=0.05 * float(abs(expected).max()))
    program = jax.make_jaxpr(lambda x: unit.apply(params, stats, x, TRAIN))(half).jaxpr
    products = [eqn for eqn in equations(program) if eqn.primitive.name == "conv_general_dilated"]
    assert [var.aval.dtype for eqn in products for var in eqn.outvars] == [jnp.bfloat16] * 2


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


# what a chain cannot have ---------------------------------------------------------------------------------------------


def linen(call, **fields):
    """A linen module of one method."""
    return type("Made", (nn.Module,), {"__call__": nn.compact(call), "__annotations__": {}} | fields)()


def nnx_module(call, **parts):
    def init(self, rngs):
        for name, part in parts.items():
            setattr(self, name, part(rngs))

    made = type("Made", (nnx.Module,), {"__init__": init, "__call__": call})
    return lambda rngs: made(rngs)


def equinox(call, **parts):
    """An equinox module of one method and these fields."""
    kinds = {"__annotations__": dict.fromkeys(parts, object), "__call__": call}
    made = type("Made", (eqx.Module,), kinds)
    return lambda key: made(**{name: part(key) for name, part in parts.items()})


class RunningMean(nn.Module):
    """A batch norm of one's own."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "average", jnp.zeros, x.shape[1:])
        if self.is_mutable_collection("batch_stats"):
            mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
        return x - mean.value


REFUSED_LINEN = {
    "two inputs": (lambda: linen(lambda self, x, skip: x + skip), ["takes (x, skip)", "one array"]),
    "two outputs": (lambda: linen(lambda self, x: (x, x)), ["returns 2 arrays", "one array"]),
    "a mean of the batch": (lambda: linen(lambda self, x: x - x.mean(0)), ["other examples", "reduce_sum"]),
    "in training alone": (
        lambda: linen(lambda self, x, train: x[::-1] if train else x),
        ["other examples", "rev"],
    ),
    "no batch axis": (lambda: linen(lambda self, x: x.mean(0, keepdims=True)), ["returns float32[1, 4]", "each"]),
    "integers": (lambda: linen(lambda self, x: x.astype(int)), ["returns int32[b, 4]", "floats"]),
    "another collection": (
        lambda: linen(lambda self, x: x + self.variable("cache", "old", jnp.zeros, 4).value),
        ["'cache'", "batch norms alone"],
    ),
    "statistics of one's own": (RunningMean, ["average in 'batch_stats'", "not of a linen.BatchNorm"]),
    "spectral norm": (
        lambda: linen(lambda self, x, train: nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)),
        ["'batch_stats'", "not of a linen.BatchNorm"],
    ),
    "randomness": (
        lambda: linen(lambda self, x: x + jax.random.normal(self.make_rng("noise"), x.shape)),
        ["noise", "dropout alone"],
    ),
    "batch statistics in tests": (lambda: nn.BatchNorm(use_running_average=False), ["in tests, too", "train"]),
    "dropout in tests": (lambda: nn.Dropout(0.5, deterministic=False), ["on in tests", "none in tests"]),
    "one mask": (lambda: nn.Dropout(0.5, broadcast_dims=(0,)), ["broadcast_dims (0,)", "each example"]),
    "one batch norm twice": (lambda: linen(lambda self, x: twice(nn.BatchNorm(), x)), ["applied twice", "each"]),
    "integer parameters": (
        lambda: linen(lambda self, x: x + self.param("n", lambda key: jnp.arange(4))),
        ["n is an array of int32", "floats"],
    ),
    "arrays as settings": (lambda: nn.Sequential([np.ones(4)]), ["cannot be compared", "make arrays"]),
    "a bound module": (lambda: nn.Dense(4).bind({}), ["bound", "clone"]),
    "wrong shape": (lambda: linen(lambda self, x: x @ jnp.ones((3, 3))), ["unit 0", "(4,)"]),
    "no module": (lambda: 3, ["3 is no module", "linen, nnx or equinox"]),
}
REFUSED_NNX = {
    "random state": (
        lambda: nnx_module(lambda self, x: x, kept=lambda rngs: rngs),
        ["random state kept/", "nnx.Dropout alone"],
    ),
    "another variable": (
        lambda: nnx_module(lambda self, x: x, old=lambda rngs: nnx.Cache(jnp.ones(4))),
        ["Cache old", "nnx.Param"],
    ),
    "a constant array": (
        lambda: nnx_module(lambda self, x: x, c=lambda rngs: jnp.ones(4)),
        ["cannot be compared", "nnx.Param"],
    ),
    "statistics of one's own": (
        lambda: nnx_module(lambda self, x: x, seen=lambda rngs: nnx.BatchStat(jnp.ones(4))),
        ["BatchStat seen", "not of an nnx.BatchNorm"],
    ),
    "one batch norm twice": (
        lambda: nnx_module(lambda self, x: twice(self.norm, x), norm=lambda rngs: nnx.BatchNorm(4, rngs=rngs)),
        ["norm is applied twice"],
    ),
    "a mean of the batch": (lambda: nnx_module(lambda self, x: x - x.mean(0)), ["other examples", "reduce_sum"]),
    "two outputs": (lambda: nnx_module(lambda self, x: (x, x)), ["returns 2 arrays"]),
    "another library": (lambda: lambda rngs: nn.Dense(4), ["expected an nnx module"]),
}
REFUSED_EQUINOX = {
    "running averages": (
        lambda: equinox(lambda self, x: x, n=lambda key: eqx.nn.BatchNorm(4, "batch", mode="ema")),
        ["mode='ema'", "mode='batch'"],
    ),
    "spectral norm": (
        lambda: lambda key: eqx.nn.SpectralNorm(eqx.nn.Linear(4, 4, key=key), "weight", key=key),
        ["state", "not of an eqx.nn.BatchNorm"],
    ),
    "integer array": (lambda: equinox(lambda self, x: x, n=lambda key: jnp.arange(4)), ["array n of int32"]),
    "an axis of the batch": (lambda: equinox(lambda self, x: jax.lax.pmean(x, "batch")), ["unbound axis name"]),
    "two outputs": (lambda: equinox(lambda self, x: (x, x)), ["returns 2 arrays"]),
    "another library": (lambda: lambda key: nn.Dense(4), ["expected an equinox module"]),
}


def twice(norm, x):
    return norm(norm(x))


def refused(make, words):
    with pytest.raises(BadInput) as raised:
        make_chain(adapt([make()]), (4,))
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, f"{missing} not in: {raised.value}"


@pytest.mark.parametrize("make, words", REFUSED_LINEN.values(), ids=REFUSED_LINEN)
def test_refused_of_linen(make, words):
    refused(make, words)


@pytest.mark.parametrize("make, words", REFUSED_NNX.values(), ids=REFUSED_NNX)
def test_refused_of_nnx(make, words):
    refused(make, words)


@needs_equinox
@pytest.mark.parametrize("make, words", REFUSED_EQUINOX.values(), ids=REFUSED_EQUINOX)
def test_refused_of_equinox(make, words):
    refused(make, words)


def test_one_module_cannot_be_cut():
    with pytest.raises(BadInput, match=r"adapt\(Dense\): expected a list of modules or a Sequential"):
        adapt(nn.Dense(4))


def attention(x):
    scores = jnp.einsum("bid,bjd->bij", x, x)
    return jnp.einsum("bij,bjd->bid", jax.nn.softmax(scores), x)


NOT_MIXING = {
    "attention": attention,
    "merged axes": lambda x: (x.reshape(-1, 4) @ jnp.ones((4, 4))).reshape(x.shape),
    "sorted features": lambda x: jnp.cumsum(jnp.sort(x, axis=-1)[..., ::-1], axis=1),
    "a scan over time": lambda x: jax.lax.scan(lambda c, t: (c + t, c * t), x[:, 0], jnp.moveaxis(x, 1, 0))[0],
    "one pixel": lambda x: x[:, 1:3, 0],
    "unused": lambda x: (x.mean(0), x)[1],
}
MIXING = {
    "mean": lambda x: x - x.mean(0, keepdims=True),
    "mean of merged axes": lambda x: x - x.reshape(-1, 4).mean(0)[None, None],
    "attention": lambda x: jnp.einsum("bc,cid->bid", jax.nn.softmax(jnp.einsum("bid,cid->bc", x, x)), x),
    "cumsum": lambda x: jnp.cumsum(x, 0),
    "sort": lambda x: jnp.sort(x, axis=0),
    "reversed": lambda x: x[::-1],
    "rolled": lambda x: jnp.roll(x, 1, axis=0),
    "inside jit": lambda x: jax.jit(lambda x: x * x.max(0, keepdims=True))(x),
}


@pytest.mark.parametrize("function", NOT_MIXING.values(), ids=NOT_MIXING)
def test_functions_of_each_example(function):
    assert len(make_chain(adapt([function]), (5, 4)).units) == 1


@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
def test_functions_that_mix_examples(function):
    with pytest.raises(BadInput, match="depends on other examples"):
        make_chain(adapt([function]), (5, 4))
