"""What a step costs a device: bytes in collectives, counted by hand; memory as the compiler has it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from helpers import small_run
from jax import lax
from jax.sharding import PartitionSpec as P

from lpjax.cost import dry_run, traffic
from lpjax.methods import METHODS
from lpjax.parallel.exchange import Exchange
from lpjax.parallel.mesh import make_mesh
from lpjax.training import run as runs

SIZE = 4 * 3 * 4
"""Bytes of what a device has: float32 [4, 3]."""


def exchanged(function, shape=(4, 1)):
    """Of `function` of each device's [4, 3]."""
    mesh = make_mesh(*shape)
    axes = P(("stage", "data"))

    def device(x):
        return jnp.zeros(1) + function(x).sum().astype(jnp.float32)

    step = jax.jit(jax.shard_map(device, mesh=mesh, in_specs=axes, out_specs=axes, check_vma=False))
    traced = step.trace(jax.ShapeDtypeStruct((4 * mesh.size, 3), jnp.float32))
    return traffic.exchanged_bytes(traced.jaxpr, dict(mesh.shape))


def shift(x):
    return lax.ppermute(x, "stage", [(0, 1)])


def total(x):
    return lax.psum(x, "stage")


@pytest.mark.parametrize(
    "function, expected",
    [
        (total, {"psum": 2 * 3 / 4 * SIZE}),
        (lambda x: lax.pmean(x, "stage"), {"psum": 2 * 3 / 4 * SIZE}),
        (lambda x: lax.pmax(x, "stage"), {"psum": 2 * 3 / 4 * SIZE}),
        (lambda x: lax.all_gather(x, "stage"), {"all_gather": 3 * SIZE}),
        (lambda x: lax.all_to_all(x, "stage", 0, 0), {"all_to_all": 3 / 4 * SIZE}),
        (lambda x: lax.psum_scatter(x, "stage", tiled=True), {"reduce_scatter": 3 / 4 * SIZE}),
        (shift, {"ppermute": SIZE}),
        (lambda x: shift(x) + shift(2 * x), {"ppermute": 2 * SIZE}),
        (lambda x: x + lax.axis_index("stage").astype(x.dtype), {}),
        (lambda x: total(x.astype(jnp.bfloat16)), {"psum": 2 * 3 / 4 * SIZE / 2}),
    ],
)
def test_each_collective(function, expected):
    assert exchanged(function) == expected


def test_of_several_axes_the_devices_multiply():
    assert exchanged(lambda x: lax.psum(x, ("stage", "data")), (2, 4)) == {"psum": 2 * 7 / 8 * SIZE}
    assert exchanged(lambda x: lax.psum(x, "data"), (2, 4)) == {"psum": 2 * 3 / 4 * SIZE}


def test_one_device_sends_nothing():
    for function in (total, lambda x: lax.ppermute(x, "stage", [(0, 0)]), lambda x: lax.all_gather(x, "stage")):
        assert sum(exchanged(function, (1, 4)).values()) == 0


def scanned(x):
    return lax.scan(lambda carry, _: (shift(carry), None), x, None, length=5)[0]


def chosen(x):
    """The dearest branch in all has the smaller psum."""
    branches = [total, lambda x: total(x[:2]) + scanned(x)[:1], lambda x: x]
    return lax.switch(lax.axis_index("stage"), [lambda x, f=f: f(x).sum() for f in branches], x)


@pytest.mark.parametrize(
    "function, expected",
    [
        (scanned, {"ppermute": 5 * SIZE}),
        (chosen, {"psum": 2 * 3 / 4 * SIZE / 2, "ppermute": 5 * SIZE}),
        (lambda x: jax.jit(shift)(x), {"ppermute": SIZE}),
        (lambda x: jax.checkpoint(shift)(x), {"ppermute": SIZE}),
        (lambda x: jax.grad(lambda y: jax.checkpoint(lambda z: jnp.sin(shift(z)))(y).sum())(x), {"ppermute": 3 * SIZE}),
    ],
    ids=["scan", "cond", "jit", "remat", "gradient of remat"],
)
def test_programs_inside_programs(function, expected):
    assert exchanged(function) == expected


def test_a_function_with_its_own_derivative_counts_once():
    @jax.custom_vjp
    def mine(x):
        return shift(x)

    mine.defvjp(lambda x: (shift(x), None), lambda _, g: (g,))
    assert exchanged(mine) == {"ppermute": SIZE}


def test_a_while_loop_with_collectives_is_refused():
    def loop(body):
        return lambda x: lax.while_loop(lambda c: c.sum() < 1, body, x)

    assert exchanged(loop(lambda x: x + 1)) == {}
    with pytest.raises(ValueError, match="a while loop with collectives"):
        exchanged(loop(shift))


@pytest.mark.parametrize("stages, sweeps", [(4, 0), (2, 0), (4, 1)])
def test_a_layer_parallel_step_exchanges_packets(stages, sweeps):
    run = small_run(dry_run=True, mesh__stage=stages, penalty__sweeps=sweeps)
    K, S, b = 4, stages, run.config.batch_size // stages
    exchange = Exchange(run.network.interfaces, S, with_multiplier=False)
    values = K * b * (exchange.outward_length + exchange.homeward_length)
    sent = traffic.exchanged_bytes(runs.trace(run).jaxpr, dict(run.mesh.shape))
    assert sent["all_to_all"] == (1 + sweeps) * (S - 1) / S * 4 * values
    assert sent["all_gather"] == (S - 1) * 3 * 4 * b, "labels, positions and steps"


def test_memory_is_that_of_one_device():
    """A pipeline spreads the whole state over the stages; serial backprop has all of it on one device."""
    fields = {"dry_run": True, "model": {"depth": 20, "width": 8}}
    whole = dry_run.step_cost(small_run(method="serial", **fields))
    part = dry_run.step_cost(small_run(method="pipeline", **fields))
    assert whole["exchanged_bytes_total"] == 0
    assert part["exchanged_bytes_total"] == sum(part["exchanged_bytes"].values()) > 0
    assert part["held_bytes"] == pytest.approx(whole["held_bytes"] / 4, rel=0.05)
    assert min(part["temporary_bytes"], part["compile_seconds"]) > 0


@pytest.mark.parametrize(
    "own",
    [{"weights": "newest"}, {"weights": "batch"}, {"keep": "activations"}, {"keep": "activations", "micro_batches": 1}],
    ids=str,
)
def test_delayed_gradients_hold_the_bytes_that_are_carried(own):
    """Of a device that has two stages; tags left out."""
    fields = {f"delayed__{name}": value for name, value in ({"micro_batches": 2} | own).items()}
    run = small_run(method="delayed", dry_run=True, mesh__stage=2, mesh__data=2, **fields)
    carry = replace(jax.eval_shape(run.create).carry, tags=(), input_tags=())
    specs = METHODS["delayed"].specs(run.network, run.config).carry
    total = 0
    for name in ("forward", "backward", "inputs", "weights", "gradients", "kept"):
        devices = 4 if "data" in getattr(specs, name) else 2
        total += sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(getattr(carry, name))) // devices
    held = METHODS["delayed"].holds(run.network, run.config, 1)
    assert sum(size for kind, size in held.items() if kind not in ("parameters", "optimizer")) == total
    assert ("rings of activations" in held) == ("keep" in own)
