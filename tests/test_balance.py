"""Cuts by what the stages' devices have to do."""

import itertools
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.config.schema import AuxConfig, Config, MeshConfig, PipelineConfig
from lpjax.cost import balance
from lpjax.cost.balance import Estimate
from lpjax.cost.timing import Seconds, StagePrograms, stopwatch
from lpjax.methods import METHODS, filled_in
from lpjax.models.resnet import resnet
from lpjax.network.network import Network
from lpjax.network.partition import even_cuts, split
from lpjax.nn.chain import Chain, make_chain
from lpjax.nn.count import chain_size
from lpjax.nn.layers import STANDARDISE
from lpjax.training import run as runs
from tests.helpers import cut_network, small_config

UNITS = resnet(depth=20, width=4, classes=10)  # 11 units: stem, nine blocks, head


def network(cuts: tuple[int, ...] | None, tail: int | None = None) -> Network:
    return cut_network(UNITS, (8, 8, 1), num_stages=3, cuts=cuts, aux=AuxConfig(tail=tail))


def config(**fields) -> Config:
    return filled_in(Config(num_stages=3, **fields))


def one_each(unit, in_shape, examples=1) -> Seconds:
    """Every unit takes a second, a third of it forward; standardisation none."""
    return Seconds(0.0, 0.0, 0.0) if unit.name == "standardise" else Seconds(1 / 3, 1.0, 2 / 3)


def slow_at_last(unit, in_shape, examples=1) -> Seconds:
    """The same, but for units on the last maps, which take three."""
    return Seconds(*((3.0 if in_shape[0] == 2 else 1.0) * part for part in one_each(unit, in_shape)))


def count(chain: Chain) -> int:
    return sum(unit.name != "standardise" for unit in chain.units)


def test_stages_with_coarse_tails():
    made = network((4, 8))
    seconds = Estimate.of(made, config(), one_each).seconds
    first, second, third = map(count, made.aux_net)
    assert first > 0
    assert seconds == pytest.approx([4 - 1 / 3 + second + third, 4 + third, 3])


@pytest.mark.parametrize("keep, again", [("activations", 0), ("inputs", 4 / 3)])
def test_stages_of_a_pipeline(keep, again):
    """In four micro-batches, for each of which a unit takes as long here; the last stage's
    forward pass is its first."""
    settings = config(method="pipeline", batch_size=12, pipeline=PipelineConfig(keep=keep))
    asked = set()

    def cost(unit, in_shape, examples):
        asked.add(examples)
        return one_each(unit, in_shape)

    found = Estimate.of(network((4, 8)), settings, cost)
    assert asked == {3}, "a micro-batch's"
    assert found.seconds == pytest.approx([4 * own for own in (4 - 1 / 3 + again, 4 + again, 3)])
    own = 4 * (1 + again / 4)  # a unit in a stage that computes its forward pass again; the last one does not
    assert found.units == pytest.approx([own - 4 / 3, *[own] * 7, 4, 4, 4])


def test_seconds_of_the_entries_of_a_schedule():
    """A third of a unit's second is forward; the first unit of the network is spared a third."""
    made, settings = network((4, 8)), config(batch_size=12)
    found = json.loads(json.dumps(balance.measured(made, settings, one_each)))
    assert (found["cuts"], found["mesh"], found["examples"]) == ([4, 8], [3, 1], 12)
    ((phase, items),) = [(p, METHODS[p["method"]].work(made, settings)) for p in found["phases"]]
    assert len(phase["seconds"]) == len(items)

    def of(label, stage):
        pairs = zip(items, phase["seconds"], strict=True)
        own = [seconds for item, seconds in pairs if (item.label, getattr(item, "stage", None)) == (label, stage)]
        return sum(own) / (3 if label.startswith("aux") else 1)  # three devices have the AuxNet

    assert [of("stage forward", k) for k in range(3)] == pytest.approx([4 / 3, 4 / 3, 1])
    assert [of("stage backward", k) for k in range(3)] == pytest.approx([8 / 3 - 1 / 3, 8 / 3, 2])
    pieces = [count(piece) for piece in made.aux_net]
    assert [of("tail forward", k) for k in range(2)] == pytest.approx([(pieces[1] + pieces[2]) / 3, pieces[2] / 3])
    assert of("tail backward", 0) == pytest.approx(2 * (pieces[1] + pieces[2]) / 3)
    assert [of("aux forward", j) for j in range(3)] == pytest.approx([piece / 3 for piece in pieces])
    spared = [1 / 3, 0, 0]
    assert [of("aux backward", j) for j in range(3)] == pytest.approx(
        [2 * p / 3 - s for p, s in zip(pieces, spared, strict=True)]
    )


def test_balanced_cuts_are_the_best_of_all():
    estimate = partial(Estimate.of, config=config(), cost=one_each)
    cuts, seconds = balance.balanced(network, estimate)
    assert seconds == estimate(network(cuts)).seconds
    everywhere = itertools.combinations(range(1, len(UNITS)), 2)
    assert max(seconds) == min(max(estimate(network(other)).seconds) for other in everywhere)
    assert cuts < even_cuts([1.0] * len(UNITS), 3), "stages with a longer tail have less of the network"


def test_units_that_take_longer_in_a_stage_are_cut_at_once_where_they_belong():
    """Units of the last maps take three times what they take alone: one look at the stages is enough to cut for it.
    The second look finds the machine half as fast."""
    settings, seen = config(method="layer_parallel", multiplier="none"), []
    estimate = partial(Estimate.of, config=settings, cost=one_each)

    def programs(made: Network) -> list[float]:
        seen.append(made.cuts)
        return [len(seen) * own for own in Estimate.of(made, settings, slow_at_last).seconds]

    cuts, seconds = balance.balanced(network, estimate, programs, start=(4, 8), rounds=2)
    assert seen == [(4, 8), cuts]
    everywhere = itertools.combinations(range(1, len(UNITS)), 2)
    assert max(seconds) == 2 * min(
        max(Estimate.of(network(other), settings, slow_at_last).seconds) for other in everywhere
    )


def test_a_stopwatch_waits_for_results_and_drops_the_first_call():
    calls = []

    def program(x):
        calls.append(1)
        return jax.jit(lambda x: (x @ x).sum())(x)

    seconds = stopwatch(program, jax.numpy.ones((300, 300)), repeats=3)
    assert len(calls) == 4
    assert len(seconds) == 3
    assert min(seconds) > 0


# cuts of a chain ------------------------------------------------------------------------------------------------------


WHOLE = make_chain(UNITS, (8, 8, 1))


def dearest(costs, cuts):
    bounds = (0, *cuts, len(costs))
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("num_stages", [2, 3, 9])
def test_even_cuts_are_optimal(num_stages):
    rng = np.random.default_rng(num_stages)
    for _ in range(5):
        costs = rng.uniform(1, 20, size=9).tolist()
        best = min(dearest(costs, cuts) for cuts in itertools.combinations(range(1, 9), num_stages - 1))
        cuts = even_cuts(costs, num_stages)
        assert len(cuts) == num_stages - 1
        assert dearest(costs, cuts) == best


def test_stages_compose_to_the_network():
    stages = split(WHOLE, num_stages=4)
    units = [unit for stage in stages for unit in stage.units if unit != STANDARDISE]
    assert tuple(units) == WHOLE.units
    assert [stage.offset for stage in stages] == np.cumsum([0, *(len(s.units) - 1 for s in stages[:-1])]).tolist()
    assert all(a.out_shape == b.in_shape for a, b in itertools.pairwise(stages))
    assert [stage.units[-1] == STANDARDISE for stage in stages] == [True, True, True, False]
    assert sum(map(chain_size, stages)) == chain_size(WHOLE)


@pytest.mark.parametrize("cuts", [(3,), (0, 4), (4, 11), (4, 4)])
def test_bad_cuts(cuts):
    with pytest.raises(ValueError, match="expected num_stages - 1 = 2 increasing positions between 1 and 10"):
        split(WHOLE, num_stages=3, cuts=cuts)


# stages as programs of their own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        *((name, {}) for name, method in METHODS.items() if method.stage_program is not None),
        ("coarse_adjoint", {"aux__tied": True}),
        ("delayed", {"delayed__keep": "activations"}),
        ("pipeline", {"pipeline__keep": "inputs"}),
    ],
)
def test_each_stage_has_a_program_on_a_columns_examples(method, fields):
    config = replace(small_config(method=method, num_stages=3, mesh__stage=1, **fields), dry_run=True)
    run = runs.prepare(replace(config, mesh=MeshConfig(1, 2)))
    programs = StagePrograms(run, jax.devices()[0])
    assert programs.column == config.batch_size // 2
    for k in range(3):
        done = programs.stage(k)()
        gradient = jax.tree.leaves(done.grads)
        assert all(jnp.isfinite(leaf).all() for leaf in gradient)
        assert max(jnp.abs(leaf).max() for leaf in gradient) > 0
        local = METHODS[method].metrics.get("stage_loss")
        if k == 2 or local:
            assert 0.1 < done.shares["loss"] < 20, "the examples count as real ones"


def test_a_method_without_stages_on_devices_is_refused():
    run = runs.prepare(replace(small_config(method="serial", num_stages=2), dry_run=True))
    with pytest.raises(ValueError, match="method=serial: a stage of it is no program of its own"):
        StagePrograms(run, jax.devices()[0]).stage(0)
