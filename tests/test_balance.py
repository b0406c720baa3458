"""Cuts by what the stages' devices have to do."""

import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from lpjax.config.schema import AuxConfig, Config, DelayedConfig, MeshConfig
from lpjax.cost import balance
from lpjax.cost.timing import Seconds, UnitTimer, in_turns, stopwatch
from lpjax.models.resnet import resnet
from lpjax.network.network import Network
from lpjax.network.partition import even_cuts
from lpjax.nn.chain import Chain, Unit
from tests.helpers import cut_network, small_config

UNITS = resnet(depth=20, width=4, classes=10)  # 11 units: stem, nine blocks, head


def network(cuts: tuple[int, ...] | None, tail: int | None = None) -> Network:
    return cut_network(UNITS, (8, 8, 1), num_stages=3, cuts=cuts, aux=AuxConfig(tail=tail))


def one_each(unit, in_shape) -> Seconds:
    """Every unit takes a second, a third of it forward; standardisation none."""
    return Seconds(0.0, 0.0, 0.0) if unit.name == "standardise" else Seconds(1 / 3, 1.0, 2 / 3)


def slow_at_last(unit, in_shape) -> Seconds:
    """The same, but for units on the last maps, which take three."""
    return Seconds(*((3.0 if in_shape[0] == 2 else 1.0) * part for part in one_each(unit, in_shape)))


def count(chain: Chain) -> int:
    return sum(unit.name != "standardise" for unit in chain.units)


def test_stages_with_coarse_tails():
    made = network((4, 8))
    seconds = balance.stage_seconds(made, Config(num_stages=3), one_each)
    first, second, third = map(count, made.aux_net)
    assert first > 0
    assert seconds == pytest.approx([4 - 1 / 3 + second + third, 4 + third, 3])


def test_a_tail_cut_short_counts_its_pieces_only():
    config = Config(num_stages=3, aux=AuxConfig(tail=0))
    made = network((4, 8), tail=0)
    third = count(made.aux_net[2])
    assert balance.stage_seconds(made, config, one_each) == pytest.approx([4 - 1 / 3 + third, 4 + third, 3])


@pytest.mark.parametrize(("method", "beside"), [("pipeline", [0, 0, 0]), ("local", [2, 1, 0])])
def test_stages_of_other_methods(method, beside):
    """A local classifier is the head and a block like the last one, if the stage has one that keeps the shape."""
    seconds = balance.stage_seconds(network((4, 8)), Config(num_stages=3, method=method), one_each)
    assert seconds == pytest.approx([a + b for a, b in zip([4 - 1 / 3, 4, 3], beside, strict=True)])


@pytest.mark.parametrize(("variant", "again"), [("fdg", 4 / 3), ("ddg", 0)])
def test_stages_that_run_forward_twice(variant, again):
    config = Config(num_stages=3, method="delayed", delayed=DelayedConfig(variant))
    seconds = balance.stage_seconds(network((4, 8)), config, one_each)
    assert seconds == pytest.approx([4 - 1 / 3 + again, 4 + again, 3])


def test_stages_with_tails_and_a_piece_beside():
    made = network((4, 8))
    seconds = balance.stage_seconds(made, Config(num_stages=3, method="coarse_adjoint"), one_each)
    _, second, third = map(count, made.aux_net)
    assert seconds == pytest.approx([4 - 1 / 3 + second + third, 4 + third + second, 3 + third])


def test_the_multiplier_needs_no_tail():
    seconds = balance.stage_seconds(network((4, 8)), Config(num_stages=3, multiplier="adjoint"), one_each)
    assert seconds == pytest.approx([4 - 1 / 3, 4, 3])


@pytest.mark.parametrize("method", ["layer_parallel", "pipeline"])
def test_seconds_of_the_parts_of_a_step(method):
    """A third of a unit's second is forward; the first unit is spared a third; a coarse tail takes all of its units."""
    made, config = network((4, 8)), Config(num_stages=3, method=method, batch_size=12)
    seconds = json.loads(json.dumps(balance.measured(made, config, one_each, one_each)))
    assert (seconds["cuts"], seconds["mesh"], seconds["examples"]) == ([4, 8], [3, 1], 12)
    stages = [(part["forward"], part["backward"]) for part in seconds["stages"]]
    assert [x for part in stages for x in part] == pytest.approx([4 / 3, 8 / 3 - 1 / 3, 4 / 3, 8 / 3, 1, 2])
    if method == "pipeline":
        assert (seconds["aux"], [part["beside"] for part in seconds["stages"]]) == ([], [0, 0, 0])
        return
    pieces = [count(piece) for piece in made.aux_net]
    assert [part["beside"] for part in seconds["stages"]] == pytest.approx([pieces[1] + pieces[2], pieces[2], 0])
    assert [part["forward"] for part in seconds["aux"]] == pytest.approx([piece / 3 for piece in pieces])
    assert [part["backward"] for part in seconds["aux"]] == pytest.approx([2 * piece / 3 for piece in pieces])


def test_balanced_cuts_are_the_best_of_all():
    config = Config(num_stages=3)
    cuts, seconds = balance.balanced(network, one_each, partial(balance.stage_seconds, config=config, cost=one_each))
    assert seconds == balance.stage_seconds(network(cuts), config, one_each)
    everywhere = itertools.combinations(range(1, len(UNITS)), 2)
    assert max(seconds) == min(max(balance.stage_seconds(network(other), config, one_each)) for other in everywhere)
    assert cuts < even_cuts([1.0] * len(UNITS), 3), "stages with a longer tail have less of the network"


def measured_cuts(monkeypatch, method: str, rounds: int) -> tuple[tuple[int, ...], list[float], list[tuple[int, ...]]]:
    """Cuts of 11 units, and those whose programs were measured: in these units of the last maps take three seconds."""
    seen: list[tuple[int, ...]] = []

    def programs(run, repeats):
        seen.append(run.network.cuts)
        return balance.stage_seconds(run.network, run.config, slow_at_last)

    monkeypatch.setattr(balance.stage_programs, "stage_seconds", programs)
    fields = {"method": method, "num_stages": 3, "model__depth": 20, "mesh__stage": 1, "dry_run": True}
    cuts, seconds = balance.measured_cuts(small_config(**fields), one_each, repeats=1, rounds=rounds)
    return cuts, seconds, seen


def test_cuts_follow_what_whole_stages_take(monkeypatch):
    by_units, _, none = measured_cuts(monkeypatch, "coarse_adjoint", rounds=0)
    cuts, seconds, seen = measured_cuts(monkeypatch, "coarse_adjoint", rounds=3)
    assert none == []
    assert seen[0] == by_units
    assert cuts in seen[1:]
    assert cuts[1] > by_units[1], "the last stage has less of the network"
    assert max(seconds) < 18, "as cut by units"


def test_units_that_take_longer_in_a_stage_are_cut_at_once_where_they_belong():
    """Units of the last maps take three times what they take alone: one look at the stages is enough to cut for it.
    The second look finds the machine half as fast."""
    config, seen = Config(num_stages=3, method="pipeline"), []
    estimate = partial(balance.stage_seconds, config=config, cost=one_each)

    def programs(made: Network) -> list[float]:
        seen.append(made.cuts)
        return [len(seen) * own for own in balance.stage_seconds(made, config, slow_at_last)]

    cuts, seconds = balance.balanced(network, one_each, estimate, programs, start=(4, 8), rounds=2)
    assert seen == [(4, 8), cuts]
    everywhere = itertools.combinations(range(1, len(UNITS)), 2)
    assert max(seconds) == 2 * min(
        max(balance.stage_seconds(network(other), config, slow_at_last)) for other in everywhere
    )


def test_cuts_do_not_follow_the_scatter_of_measurements():
    """Stages measured with a tenth of scatter, of a network of 29 units that take 1.5, 1 and 0.7 times what they are
    told to: the dearest stage is hardly dearer than with the best cuts, and in no series of measurements by much."""
    config, units = Config(num_stages=5, method="pipeline"), resnet(depth=56, width=4, classes=10)
    factor = {8: 1.5, 4: 1.0, 2: 0.7}

    def true(unit, in_shape) -> Seconds:
        return Seconds(*(factor[in_shape[0]] * part for part in one_each(unit, in_shape)))

    def cut(cuts: tuple[int, ...] | None) -> Network:
        return cut_network(units, (8, 8, 1), num_stages=5, cuts=cuts)

    def excess(seed: int) -> float:
        rng = np.random.default_rng(seed)

        def measured(made: Network) -> list[float]:
            return [own * (1 + 0.1 * float(rng.standard_normal())) for own in seconds(made)]

        cuts, _ = balance.balanced(cut, one_each, estimate, measured, rounds=3)
        return max(seconds(cut(cuts))) / best - 1

    estimate = partial(balance.stage_seconds, config=config, cost=one_each)
    seconds = partial(balance.stage_seconds, config=config, cost=true)
    best = max(balance.balanced(cut, true, seconds)[1])
    found = [excess(seed) for seed in range(10)]
    assert min(found) >= 0
    assert np.mean(found) < 0.03, found
    assert max(found) < 0.1, found


def test_other_methods_are_cut_by_units(monkeypatch):
    assert measured_cuts(monkeypatch, "pipeline", rounds=3)[2] == []


def test_even_cuts_with_costs_beside():
    assert even_cuts([1.0] * 8, 2) == (4,)
    assert even_cuts([1.0] * 8, 2, [2.0, 0.0]) == (3,)
    assert even_cuts([1.0] * 9, 3, [0.0, 0.0, 3.0]) == (4, 8)


def test_a_timer_measures_each_unit_once_and_others_beside_the_first(monkeypatch):
    """On a machine that becomes ten times slower after the first unit, the second one is still twice the first."""
    calls, speed = [], [1.0]

    def clock(programs, repeats):
        calls.append((len(programs), repeats))
        return [[(2.0 if len(calls) == 2 and i < 3 else 1.0) / speed[0]] * repeats for i in range(len(programs))]

    monkeypatch.setattr("lpjax.cost.timing.in_turns", clock)
    timer = UnitTimer(batch=4, repeats=7, row=1)
    first = timer(UNITS[2], (8, 8, 4))
    speed[0] = 0.1
    second = timer(UNITS[4], (8, 8, 4))
    assert timer(UNITS[2], (8, 8, 4)) == first == Seconds(1.0, 1.0, 1.0)
    assert second == Seconds(2.0, 2.0, 2.0)
    assert calls == [(3, 7), (4, 7)]


def test_programs_take_turns():
    order = []
    seconds = in_turns([lambda i=i: order.append(i) for i in range(3)], repeats=2)
    assert order == [0, 0, 1, 1, 2, 2] * 2, "of each turn the second call counts"
    assert [len(own) for own in seconds] == [2, 2, 2]


def test_a_timer_measures_in_the_precision_of_the_run():
    timer = balance.make_timer(Config(batch_size=8, bfloat16=True, remat=True, mesh=MeshConfig(2, 2)), repeats=1)
    assert (timer.batch, timer.dtype, timer.remat) == (4, "bfloat16", True)
    assert balance.make_timer(Config(batch_size=8, mesh=MeshConfig(2, 2)), repeats=1, devices=2).batch == 2
    seen = []

    def apply(params, stats, x, mode):
        seen.append(x.dtype)
        return x, stats

    timer(Unit("watched", lambda key, in_shape: ({}, {}), apply), (2, 2, 1))
    assert seen[-1] == "bfloat16"


def test_a_stopwatch_waits_for_results_and_drops_the_first_call():
    calls = []

    def program(x):
        calls.append(1)
        return jax.jit(lambda x: (x @ x).sum())(x)

    seconds = stopwatch(program, jax.numpy.ones((300, 300)), repeats=3)
    assert len(calls) == 4
    assert len(seconds) == 3
    assert min(seconds) > 0


@pytest.mark.slow
def test_the_command_prints_cuts_that_the_trainer_takes(tmp_path):
    root = Path(__file__).parent.parent
    flags = ["--config=configs/digits.py", "--config.num_stages=2", "--config.model.depth=8"]
    command = [sys.executable, "-m", "lpjax.balance", *flags, "--repeats=1", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert (len(seconds["stages"]), len(seconds["aux"]), seconds["mesh"]) == (2, 2, [2, 1])
    *stages, cuts = done.stdout.splitlines()
    assert [line.split(":")[0] for line in stages] == ["stage 0", "stage 1"]
    again = subprocess.run(
        [sys.executable, "-m", "lpjax.main", *flags, cuts.replace("'", ""), "--config.dry_run"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
