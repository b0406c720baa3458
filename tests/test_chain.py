"""Chains: repeats, scanning, shapes, initialisation by position."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close

from lpjax.errors import BadInput
from lpjax.models.preact_resnet import PreActivationBlock, wide_resnet
from lpjax.models.resnet import ConvBlock, PostActivationBlock, basic_block, resnet
from lpjax.network.grid_block import GridBlock
from lpjax.nn import chain, residues
from lpjax.nn.chain import Chain, Mode, Unit, make_chain
from lpjax.nn.count import activation_bytes
from lpjax.nn.layers import Standardise

pytestmark = pytest.mark.usefixtures("x64")


def test_resnet_110_is_seven_repeats():
    network = make_chain(resnet(depth=110, width=16, classes=10), (32, 32, 3))
    assert [repeat.count for repeat in network.repeats] == [1, 18, 1, 17, 1, 17, 1]
    assert len(network.units) == 56
    assert network.shapes[-2:] == ((8, 8, 64), (10,))


MADE = {
    "block": lambda: basic_block(4, 1),
    "grid": lambda: GridBlock(4, 4, (8, 8), 4, 1),
    "standardise": Standardise,
    "functions": lambda: Unit("same", no_parameters, identity),
}


@pytest.mark.parametrize("unit", MADE.values(), ids=MADE)
def test_equal_units_made_apart_are_one_repeat(unit):
    network = make_chain([unit(), unit(), ConvBlock(4, 1, 3), unit()], (8, 8, 4))
    assert [repeat.count for repeat in network.repeats] == [2, 1, 1]


def no_parameters(key, in_shape):
    return {}, {}


def identity(params, stats, x, mode):
    return x, stats


def test_units_with_other_settings_or_functions_are_not_one_repeat():
    blocks = [PreActivationBlock("basic", 4, 1, rate) for rate in (0.0, 0.3)]
    zero = Unit("same", no_parameters, lambda params, stats, x, mode: (0 * x, stats))
    network = make_chain([*blocks, Unit("same", no_parameters, identity), zero], (8, 8, 4))
    assert [repeat.count for repeat in network.repeats] == [1, 1, 1, 1]


@pytest.mark.parametrize("train", [True, False])
def test_a_scanned_repeat_equals_its_units_one_by_one(train):
    """Values and gradients: the same parameters in a chain whose equal units are told apart."""
    block = basic_block(4, 1)
    scanned = make_chain([block] * 3, (6, 6, 4))
    different = [Unit(f"{block.name}-{i}", block.init, block.apply) for i in range(3)]
    unrolled = make_chain(different, (6, 6, 4))
    assert len(scanned.repeats) == 1
    assert len(unrolled.repeats) == 3
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (2, 6, 6, 4))

    def loss(chain_: Chain, params):
        _, stats = chain.init(chain_, key)
        y, stats = chain.apply(chain_, params, stats, x, Mode(train))
        return (y**2).sum(), stats

    (value, stats), grads = jax.value_and_grad(lambda p: loss(scanned, p), has_aux=True)(chain.init(scanned, key)[0])
    (value2, stats2), grads2 = jax.value_and_grad(lambda p: loss(unrolled, p), has_aux=True)(
        chain.init(unrolled, key)[0]
    )

    def stacked(trees):
        return (jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees),)

    assert_close((value, stats, grads), (value2, stacked(stats2), stacked(grads2)))


def test_statistics_are_the_batchs_in_training_and_the_given_ones_otherwise():
    network = make_chain([ConvBlock(3, 1, 3)], (5, 5, 2))
    params, stats = chain.init(network, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (7, 5, 5, 2))
    _, batch = chain.apply(network, params, stats, x, Mode(train=True))
    assert float(jnp.abs(batch[0]["var"] - 1).max()) > 0.1
    y, same = chain.apply(network, params, batch, x, Mode(train=False))
    assert_close(same, batch)
    assert_close(y, chain.apply(network, params, stats, x, Mode(train=True))[0])


def test_a_unit_that_does_not_fit_is_named():
    units = [ConvBlock(8, 1, 3), basic_block(4, 1)]
    with pytest.raises(ValueError, match=r"unit 1 \(block-4\).*\(8, 8, 8\).*features=4 after 8 channels"):
        make_chain(units, (8, 8, 1))


@pytest.mark.slow
def test_computing_units_again_changes_nothing_but_what_is_kept():
    """Values and gradients with `remat`, of a scanned and of a single unit with dropout; the memory is less."""
    network = make_chain(wide_resnet(depth=22, widen=1, classes=3, dropout=0.3), (8, 8, 1))
    params, stats = chain.init(network, jax.random.key(0))
    x, keys = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jax.random.split(jax.random.key(2), 4)

    def loss(params, network):
        return (chain.apply(network, params, stats, x, Mode(train=True, keys=keys))[0] ** 2).sum()

    again = replace(network, remat=True)
    assert_close(jax.value_and_grad(loss)(params, again), jax.value_and_grad(loss)(params, network))
    assert activation_bytes(again, 4) < 0.5 * activation_bytes(network, 4)


def test_a_unit_that_computes_in_another_type_than_the_chains():
    """A row of them is scanned all the same, and statistics keep their own type."""

    def scale(key, in_shape):
        return {"scale": jnp.ones(in_shape, jnp.float32)}, {"mean": jnp.zeros(in_shape, jnp.float32)}

    def apply(params, stats, x, mode):
        wide = x.astype(jnp.float32)
        return params["scale"][None] * wide, {"mean": wide.mean(0).astype(jnp.bfloat16)}

    network = replace(make_chain([Unit("wide", scale, apply)] * 3, (4,)), dtype="bfloat16")
    params, stats = chain.init(network, jax.random.key(0))
    x = jnp.arange(8.0).reshape(2, 4)
    y, new = jax.jit(lambda x: chain.apply(network, params, stats, x, Mode(train=True)))(x)
    assert_close(y, x)
    assert (y.dtype, new[0]["mean"].dtype) == (x.dtype, jnp.float32)


def test_bfloat16_is_of_the_activations_alone():
    network = replace(make_chain(resnet(depth=14, width=8, classes=3), (8, 8, 1)), dtype="bfloat16")

    def loss(params, stats, x, network):
        y, new = chain.apply(network, params, stats, x, Mode(train=True))
        return (y**2).sum(), (y, new)

    with jax.enable_x64(False):
        params, stats = chain.init(network, jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
        gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)
        (low, (y, new)), grads = gradients(params, stats, x, network)
        (full, (exact, _)), _ = gradients(params, stats, x, replace(network, dtype=None))
        program = str(jax.make_jaxpr(gradients, static_argnums=3)(params, stats, x, network))
        kept, kept_of_full = activation_bytes(network, 16), activation_bytes(replace(network, dtype=None), 16)
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, y, new))} == {jnp.float32.dtype}
    assert 0 < float(jnp.abs(y - exact).max()) < 0.1 * float(jnp.abs(exact).max()), "rounded, and not more"
    assert float(low) == pytest.approx(float(full), rel=0.05)
    convolutions = [line for line in program.splitlines() if "= conv_general_dilated[" in line]
    assert len(convolutions) >= 3 * 7
    assert all("bf16[" in line for line in convolutions)
    assert kept < 0.6 * kept_of_full


def test_a_unit_knows_its_place_in_the_network():
    """Whatever the cuts, and inside a scan as outside."""
    places = Unit(
        "place", lambda key, shape: ({}, {}), lambda p, s, x, mode: (x + jnp.asarray(mode.position, x.dtype), s)
    )
    network = make_chain([places] * 5, (1,))
    params, stats = chain.init(network, jax.random.key(0))
    y, _ = chain.apply(network, params, stats, jnp.zeros((1, 1)), Mode(train=True))
    assert float(y[0, 0]) == 0 + 1 + 2 + 3 + 4
    for start, stop in ((3, 5), (4, 5)):
        piece = network.piece(start, stop)
        params, stats = chain.init(piece, jax.random.key(0))
        y, _ = chain.apply(piece, params, stats, jnp.zeros((1, 1)), Mode(train=True))
        assert float(y[0, 0]) == sum(range(start, stop))


def own(init=lambda key, shape: ({}, {}), apply=lambda p, s, x, mode: (x, s)):
    return Unit("own", init, apply)


@pytest.mark.parametrize(
    "unit, message",
    [
        (own(lambda key, shape: ({"a": {"index": jnp.arange(3)}}, {})), r"'index'\] is int32, expected floating"),
        (own(lambda key, shape: ({}, {"count": jnp.zeros((), bool)})), r"'count'\] is bool, expected floating"),
        (own(apply=lambda p, s, x, mode: ((x, x), s)), r"returns PyTreeDef\(\(\*, \*\)\), expected one array"),
    ],
)
def test_what_a_chain_cannot_have(unit, message):
    with jax.enable_x64(False), pytest.raises(BadInput, match=rf"unit 1 \(own\) .*{message}"):
        make_chain([own(), unit], (3,))


# residues -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features, stride", [(4, 1), (8, 2)])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("padded", [True, False, None], ids=["padded", "projected", "preact"])
def test_a_residue_is_what_is_added_to_the_shortcut(kind, features, stride, padded):
    """Against the block without its last layer; the last bias is large, so that no ReLU acts on the sum."""
    size = features // 4 if kind == "bottleneck" else features
    last = "third" if kind == "bottleneck" else "second"
    if padded is None:
        block, name, part = PreActivationBlock(kind, size, stride, 0.0), "conv", "kernel"
    else:
        block, name, part = PostActivationBlock(kind, size, stride, padded=padded), "norm", "scale"
    params, stats = block.init(jax.random.key(0), (8, 8, 4))
    if padded is not None:
        params[last]["norm"]["bias"] += 100.0
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 4), float)
    without = params | {last: params[last] | {name: params[last][name] | {part: 0 * params[last][name][part]}}}
    (y, r, _), (shortcut, bias, _) = (block.with_residue(p, stats, x, Mode(train=True)) for p in (params, without))
    assert_close(bias, jnp.full_like(bias, 0.0 if padded is None else 100.0))
    assert_close(y - shortcut, r - bias)
    assert abs(r - bias).max() > 0.1


def test_residues_of_a_chain():
    """As its blocks have them one after another; everything else as without."""
    units = [ConvBlock(4, 1, 3), *[basic_block(4, 1)] * 2, basic_block(8, 2), Standardise()]
    whole = make_chain(units, (8, 8, 3))
    params, stats = chain.init(whole, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3), float)
    *found, sizes = residues.apply(whole, params, stats, x, Mode(train=True))
    assert_close(tuple(found), chain.apply(whole, params, stats, x, Mode(train=True)))
    expected = jnp.zeros(3)
    for unit, p, s in zip(units, chain.unstack(whole, params), chain.unstack(whole, stats), strict=True):
        if isinstance(unit, PostActivationBlock):
            expected += (unit.with_residue(p, s, x, Mode(train=True))[1] ** 2).mean((1, 2, 3))
        x, _ = unit.apply(p, s, x, Mode(train=True))
    assert_close(sizes, expected)
