"""The methods that CONTRIBUTING.md shows: all that lpjax does with a method works, and no shared file was touched."""

import json
import re
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lpjax.cost import balance
from lpjax.cost.machine import Link, Machine
from lpjax.cost.model import device_bytes, step_seconds
from lpjax.cost.timing import Seconds
from lpjax.cost.traffic import exchanged, scheduled
from lpjax.export import model_file
from lpjax.export.from_run import composed_trees, write
from lpjax.methods import METHODS
from lpjax.nn import chain
from lpjax.nn.chain import Mode
from lpjax.report import page, record
from lpjax.training import loop, resume
from lpjax.training import run as runs
from lpjax.training.summary import describe
from tests.helpers import assert_close, built, detach, plain_sgd, small_config, small_run, take_steps, trees

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
LISTINGS = re.findall(r"<!-- method -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
NAMES = ("sign", "micro")
RATE = 0.01
LINK = Link(1.0, 1.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Both, as the page has them."""
    for name in METHODS:
        monkeypatch.setitem(METHODS, name, METHODS[name])
    before = dict(METHODS)
    for number, listing in enumerate(LISTINGS):
        exec(compile(listing, f"listing {number}", "exec"), types.ModuleType(f"listing_{number}").__dict__)
    assert METHODS.keys() - before.keys() == set(NAMES)
    yield
    for name in NAMES:
        del METHODS[name]


def short_run(name, **fields):
    return small_run(
        method=name, num_epochs=1, log_every=1, eval__every_epochs=0, eval__calibration_batches=1, **fields
    )


def test_signs_move_every_weight_by_the_rate(x64):
    run = small_run(method="sign", **plain_sgd(RATE))
    before = detach(run.create().stage_params)
    state, _ = run.step(run.create(), next(run.feed.train()))
    moves = np.abs(jax.device_get(state.stage_params["kernel"]) - before["kernel"])
    assert np.isclose(moves, RATE).mean() > 0.3, "most of a row is padding"
    assert (np.isclose(moves, RATE) | (moves == 0)).all()


def test_micro_batches_by_a_plain_route(x64):
    """The first stage's gradient in the first step: of the mean of both halves' losses behind the AuxNet's tail."""
    run = small_run(method="micro", mesh__stage=1, data__crop=0, **plain_sgd())
    params, stats, aux_params, aux_stats = trees(run)
    batch = detach(next(run.feed.train()))
    x = run.step_inputs.normalised(batch.image)

    def loss(first):
        total = 0.0
        for m in range(2):
            y, _ = chain.apply(run.network.stages[0], first, stats[0], x[m::2], Mode(train=True))
            for j in range(1, 4):
                y, _ = chain.apply(run.network.aux_net[j], aux_params[j], aux_stats[j], y, Mode(train=True))
            picked = jnp.take_along_axis(jax.nn.log_softmax(y), batch.label[m::2, None].astype(int), 1)
            total = total - picked.sum() / 16
        return total

    expected = jax.tree.map(lambda p, g: p - g, params[0], jax.jit(jax.grad(loss))(params[0]))
    state, _ = run.step(run.create(), next(run.feed.train()))
    after = run.network.params.unpack_all(detach(state.stage_params))[0]
    assert_close(after, expected)


def test_numbers_do_not_depend_on_the_mesh(x64):
    expected, _ = take_steps(small_run(method="micro", mesh__stage=1), 3)
    state, _ = take_steps(small_run(method="micro", mesh__stage=4), 3)
    assert_close(state.stage_params, expected.stage_params)


@pytest.mark.parametrize("name", NAMES)
def test_trains_goes_on_reports_and_is_exported(name, tmp_path):
    console = Console(quiet=True)
    first = loop.train(short_run(name, num_steps=2), tmp_path / "run", console)
    assert (first["ended"], first["steps"], first["method"]) == ("finished", 2, name)
    run = short_run(name, num_steps=4)
    assert loop.train(run, tmp_path / "run", console)["steps"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    found = record.read(tmp_path / "run")
    text = page.render([found])
    assert f"A step of {name}" in text
    assert not any("structure.json" in note for note in found.notes)
    state, step, meta = resume.load(run, tmp_path / "run")
    write(tmp_path / "model", run, *composed_trees(run, state), step=step, test_accuracy=0.5)
    card = (tmp_path / "model" / model_file.CARD).read_text()
    assert METHODS[name].title in card
    assert meta["method"] == name


@pytest.mark.parametrize("name", NAMES)
def test_is_predicted_balanced_and_drawn(name):
    network, config = built(method=name)
    machine = Machine("any", lambda unit, shape, n: (1.0 * n, 2.0 * n), 8, LINK, LINK, 1e3, 1.0)
    seconds = step_seconds(network, config, machine)
    assert seconds.total == pytest.approx(sum(seconds.parts.values()))
    assert seconds.total > seconds.parts["stage forward"] > 0
    found = device_bytes(network, config, 100)
    assert min(found["parameters"], found["activations"]) > 0
    assert describe(network, config)["phases"][0]["title"] == METHODS[name].title

    def cost(unit, in_shape, examples):
        return Seconds(examples / 3, float(examples), 2 * examples / 3)

    cuts, _ = balance.measured_cuts(small_config(method=name, dry_run=True), cost, repeats=1, rounds=0)
    assert len(cuts) == 3
    assert (METHODS[name].stage_program is not None) == (name == "micro")


@pytest.mark.parametrize("name, mesh", [("sign", (1, 2)), ("micro", (1, 2)), ("micro", (4, 1))])
def test_the_schedule_sends_what_the_traced_step_sends(name, mesh):
    run = runs.prepare(replace(small_config(method=name, mesh__stage=mesh[0], mesh__data=mesh[1]), dry_run=True))
    sizes = dict(run.mesh.shape)
    found = scheduled(METHODS[name].work(run.network, run.config), sizes)
    traced = exchanged(runs.trace(run).jaxpr, sizes)
    assert found.keys() == traced.keys()
    for kind, sent in traced.items():
        assert found[kind] == pytest.approx(sent), kind


def test_the_diagnosis_compares_on_the_micro_batches_that_a_gradient_is_of(tmp_path):
    """The last stage, on its own batch of three steps ago, goes the way of backprop, though batch norm sees halves."""
    run = short_run("micro", num_steps=8, diagnose_every=8, mesh__stage=1)
    loop.train(run, tmp_path, Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (cosine,) = [line["gradient_cosine"] for line in lines if "gradient_cosine" in line]
    assert cosine[-1] > 0.5
