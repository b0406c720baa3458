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

from lpjax.config.schema import AuxConfig, Config, DelayedConfig
from lpjax.cost import balance
from lpjax.cost.timing import Seconds, UnitTimer, interleaved, stopwatch
from lpjax.methods import METHODS, filled_in
from lpjax.models.resnet import resnet
from lpjax.network.network import Network
from lpjax.network.partition import even_cuts
from lpjax.nn.chain import Chain, Unit
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
    seconds = balance.stage_seconds(made, config(), one_each)
    first, second, third = map(count, made.aux_net)
    assert first > 0
    assert seconds == pytest.approx([4 - 1 / 3 + second + third, 4 + third, 3])


def test_a_tail_cut_short_counts_its_pieces_only():
    made = network((4, 8), tail=0)
    third = count(made.aux_net[2])
    seconds = balance.stage_seconds(made, config(aux=AuxConfig(tail=0)), one_each)
    assert seconds == pytest.approx([4 - 1 / 3 + third, 4 + third, 3])


def test_stages_of_local_losses():
    """A local classifier is the head and a block like the last one, if the stage has one that keeps the shape.  No
    stage finds the gradient of its input."""
    seconds = balance.stage_seconds(network((4, 8)), config(method="local"), one_each)
    assert seconds == pytest.approx([4 - 1 / 3 + 2, 4 - 1 / 3 + 1, 3 - 1 / 3])


def test_stages_of_a_pipeline_run_forward_again():
    """In four micro-batches, for each of which a unit takes as long here; the last stage's
    forward pass is its first."""
    seconds = balance.stage_seconds(network((4, 8)), config(method="pipeline", batch_size=12), one_each)
    assert seconds == pytest.approx([4 * own for own in (4 - 1 / 3 + 4 / 3, 4 + 4 / 3, 3)])


@pytest.mark.parametrize("variant", ["fdg", "ddg"])
def test_stages_that_run_forward_twice(variant):
    """For the stage behind, and again for the backward pass of an older batch (DDG: of the same one, but computed again
    all the same)."""
    settings = config(method="delayed", delayed=DelayedConfig(variant))
    seconds = balance.stage_seconds(network((4, 8)), settings, one_each)
    assert seconds == pytest.approx([4 - 1 / 3 + 4 / 3, 4 + 4 / 3, 3])


def test_stages_with_tails_and_a_piece_beside():
    made = network((4, 8))
    seconds = balance.stage_seconds(made, config(method="coarse_adjoint"), one_each)
    _, second, third = map(count, made.aux_net)
    own = [4 - 1 / 3, 4 - 1 / 3, 3 - 1 / 3]  # real inputs: no stage finds the gradient of its own
    assert seconds == pytest.approx([own[0] + second + third, own[1] + third + second, own[2] + third])


def test_the_multiplier_needs_no_tail():
    seconds = balance.stage_seconds(network((4, 8)), config(multiplier="adjoint"), one_each)
    assert seconds == pytest.approx([4 - 1 / 3, 4, 3])


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
    assert [of("aux backward", j) for j in range(3)] == pytest.approx(
        [2 * p / 3 - (j == 0) / 3 for j, p in enumerate(pieces)]
    )
    assert sum(phase["seconds"]) == pytest.approx(sum(of(a, b) * n for a, b, n in [
        *(("stage forward", k, 1) for k in range(3)), *(("stage backward", k, 1) for k in range(3)),
        *((f"tail {way}", k, 1) for k in range(2) for way in ("forward", "backward")),
        *((f"aux {way}", j, 3) for j in range(3) for way in ("forward", "backward")),
    ]))  # fmt: skip


def test_balanced_cuts_are_the_best_of_all():
    estimate = partial(balance.stage_seconds, config=config(), cost=one_each)
    cuts, seconds = balance.balanced(network, one_each, 1, estimate)
    assert seconds == estimate(network(cuts))
    everywhere = itertools.combinations(range(1, len(UNITS)), 2)
    assert max(seconds) == min(max(estimate(network(other))) for other in everywhere)
    assert cuts < even_cuts([1.0] * len(UNITS), 3), "stages with a longer tail have less of the network"


def measured_cuts(monkeypatch, method: str, rounds: int) -> tuple[tuple[int, ...], list[float], list[tuple[int, ...]]]:
    """Cuts of 11 units, and those whose programs were measured: in these units of the last maps take three seconds."""
    seen: list[tuple[int, ...]] = []

    def programs(run, repeats):
        seen.append(run.network.cuts)
        return balance.stage_seconds(run.network, run.config, slow_at_last)

    monkeypatch.setattr(balance.timing, "stage_seconds", programs)
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
    settings, seen = config(method="layer_parallel", multiplier="none"), []
    estimate = partial(balance.stage_seconds, config=settings, cost=one_each)

    def programs(made: Network) -> list[float]:
        seen.append(made.cuts)
        return [len(seen) * own for own in balance.stage_seconds(made, settings, slow_at_last)]

    cuts, seconds = balance.balanced(network, one_each, 1, estimate, programs, start=(4, 8), rounds=2)
    assert seen == [(4, 8), cuts]
    everywhere = itertools.combinations(range(1, len(UNITS)), 2)
    assert max(seconds) == 2 * min(
        max(balance.stage_seconds(network(other), settings, slow_at_last)) for other in everywhere
    )


def test_cuts_do_not_follow_the_scatter_of_measurements():
    """Stages measured with a tenth of scatter, of a network of 29 units that take 1.5, 1 and 0.7 times what they are
    told to: the dearest stage is hardly dearer than with the best cuts, and in no series of measurements by much."""
    settings, units = filled_in(Config(num_stages=5, multiplier="none")), resnet(depth=56, width=4, classes=10)
    factor = {8: 1.5, 4: 1.0, 2: 0.7}

    def true(unit, in_shape, examples=1) -> Seconds:
        return Seconds(*(factor[in_shape[0]] * part for part in one_each(unit, in_shape)))

    def cut(cuts: tuple[int, ...] | None) -> Network:
        return cut_network(units, (8, 8, 1), num_stages=5, cuts=cuts)

    def excess(seed: int) -> float:
        rng = np.random.default_rng(seed)

        def measured(made: Network) -> list[float]:
            return [own * (1 + 0.1 * float(rng.standard_normal())) for own in seconds(made)]

        cuts, _ = balance.balanced(cut, one_each, 1, estimate, measured, rounds=3)
        return max(seconds(cut(cuts))) / best - 1

    estimate = partial(balance.stage_seconds, config=settings, cost=one_each)
    seconds = partial(balance.stage_seconds, config=settings, cost=true)
    best = max(balance.balanced(cut, true, 1, seconds)[1])
    found = [excess(seed) for seed in range(10)]
    assert min(found) > -1e-9
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

    monkeypatch.setattr("lpjax.cost.timing.interleaved", clock)
    timer = UnitTimer(repeats=7, row=1)
    first = timer(UNITS[2], (8, 8, 4), 4)
    speed[0] = 0.1
    second = timer(UNITS[4], (8, 8, 4), 4)
    assert timer(UNITS[2], (8, 8, 4), 4) == first == Seconds(1.0, 1.0, 1.0)
    assert second == Seconds(2.0, 2.0, 2.0)
    assert calls == [(3, 7), (4, 7)]


def test_programs_take_turns():
    order = []
    seconds = interleaved([lambda i=i: order.append(i) for i in range(3)], repeats=2)
    assert order == [0, 0, 1, 1, 2, 2] * 2, "of each turn the second call counts"
    assert [len(own) for own in seconds] == [2, 2, 2]


def test_a_timer_measures_in_the_precision_of_the_run():
    timer = balance.make_timer(Config(bfloat16=True, remat=True), repeats=1)
    assert (timer.dtype, timer.remat) == ("bfloat16", True)
    seen = []

    def apply(params, stats, x, mode):
        seen.append((x.dtype, x.shape))
        return x, stats

    timer(Unit("watched", lambda key, in_shape: ({}, {}), apply), (2, 2, 1), 4)
    assert seen[-1] == ("bfloat16", (4, 2, 2, 1))


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
    assert (seconds["mesh"], [phase["method"] for phase in seconds["phases"]]) == ([2, 1], ["layer_parallel"])
    assert sum(own > 0 for own in seconds["phases"][0]["seconds"]) == 2 * 2 + 2 + 2 * 2 * 2, "stages, a tail, AuxNet"
    *stages, cuts = done.stdout.splitlines()
    assert [line.split(":")[0] for line in stages] == ["stage 0", "stage 1"]
    again = subprocess.run(
        [sys.executable, "-m", "lpjax.main", *flags, cuts.replace("'", ""), "--config.dry_run"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
