"""A run from its parts: files, figures, learning, and the ways it ends."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config, small_run, take_steps
from rich.console import Console
from test_stream import Memory, make_stream, slow, streamed

from lpjax.config.schema.penalty import POLICIES
from lpjax.cost import dry_run
from lpjax.cost.model import device_bytes, memory_in_words
from lpjax.data import SOURCES, stream
from lpjax.nn.count import chain_size
from lpjax.report import curves, drawings, record
from lpjax.training import log, loop, summary, workdir
from lpjax.training import run as runs
from lpjax.training.evaluate import Evaluation


def quiet():
    return Console(file=io.StringIO(), width=200)


def lines(workdir, kind="train"):
    return [
        entry
        for entry in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        if entry["kind"] == kind
    ]


def test_a_run_leaves_what_it_promises(tmp_path):
    run = small_run(num_steps=25, log_every=5, batch_size=128, eval__every_epochs=1)
    console = quiet()
    result = loop.train(run, tmp_path, console)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert result["ended"] == "finished"
    assert result["mesh"] == {"stage": 4, "data": 1}
    assert (result["method"], result["num_stages"], result["seed"], result["steps"]) == ("layer_parallel", 4, 0, 22)
    assert result["epochs"] == 2
    assert len(result["relative_violation"]) == 3
    assert len(result["parameters"]["stages"]) == 4
    assert result["parameters"]["aux"] > 0
    assert result["versions"]["jax"] == jax.__version__
    assert 0 < result["data_seconds_median"] < result["seconds_per_step_median"]
    assert result["corrupt_images"] == 0
    assert all(0 < entry["data_seconds"] < 10 for entry in lines(tmp_path))
    seconds = [entry["seconds"] for kind in ("train", "eval") for entry in lines(tmp_path, kind)]
    assert seconds[0] > 0
    assert sorted(seconds) == sorted(set(seconds))
    assert max(seconds) < result["seconds_total"]
    assert result["seconds_per_step_median"] * result["examples_per_second"] == pytest.approx(128)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 5, 10, 15, 20, 22]
    assert [entry["step"] for entry in lines(tmp_path, "eval")] == [11, 22]
    assert lines(tmp_path, "eval")[-1]["test_accuracy"] == result["test_accuracy"]
    page = record.read(tmp_path)
    assert (page.notes, page.ended, page.last_step) == ((), "finished", 22)
    assert len(page.lines["relative_violation"]) == len(page.structure["stages"]) - 1 == 3
    assert [stage["parameters"] for stage in page.structure["stages"]] == result["parameters"]["stages"]
    assert sum(piece["parameters"] for piece in page.structure["aux"]) == result["parameters"]["aux"]
    makers = (curves.learning, curves.constraints, drawings.cuts, drawings.schedules, drawings.times)
    assert all(chart.figure for make in makers for chart in make([page]))
    assert "test accuracy" in console.file.getvalue()
    assert "step 20/22" in console.file.getvalue()


@pytest.mark.parametrize("read, step", [(0.02, 0.0), (0.0, 0.3)], ids=["slow files", "slow step"])
def test_data_seconds_are_of_waiting_for_data_alone(read, step, tmp_path, monkeypatch):
    """Seconds for a file, of which a batch has eight, and for a step, behind which the devices take the next batch."""
    monkeypatch.setattr(Memory, "__getitem__", slow(Memory.__getitem__, read))
    monkeypatch.setattr(stream, "_on_mesh", slow(stream._on_mesh, step))
    run = dataclasses.replace(
        small_run(mesh__stage=1, num_steps=8, log_every=1),
        feed=streamed(make_stream(), data__threads=1, data__prefetch=8),
        step=lambda state, batch: (state, dict.fromkeys(("task_loss", "accuracy"), jnp.zeros(()))),
        evaluate=lambda state, feed: Evaluation(0.0, 0.0, None, None, 11),
    )
    result = loop.train(run, tmp_path, quiet())
    logged = np.median([entry["data_seconds"] for entry in lines(tmp_path)])
    for waited in (result["data_seconds_median"], logged):
        assert waited > 0.1 if read else 0 < waited < 0.1
    assert result["seconds_per_step_median"] > max(8 * read / 2, step)


def test_restart_keeps_the_earlier_run(tmp_path):
    loop.train(small_run(num_steps=1), tmp_path, quiet())
    before = (tmp_path / "metrics.jsonl").read_text()
    loop.train(small_run(num_steps=2, seed=1), tmp_path, quiet(), restart=True)
    assert (tmp_path / "previous-1" / "metrics.jsonl").read_text() == before
    assert (tmp_path / "previous-1" / "checkpoints" / "1").is_dir()
    assert len(lines(tmp_path)) == 2
    loop.train(small_run(num_steps=1), tmp_path, quiet(), restart=True)
    assert json.loads((tmp_path / "previous-2" / "result.json").read_text())["seed"] == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_violation_falls_and_nothing_collapses(policy):
    """Three epochs: every interface's relative violation falls, and outputs keep the scale that makes it mean
    something."""
    run = small_run(multiplier=policy, mesh__stage=1, batch_size=64, num_epochs=3, data__crop=0)
    _, figures = take_steps(run, run.num_steps)
    violation = np.array([f["relative_violation"] for f in figures])
    assert (violation[-5:].mean(0) < 0.7 * violation[:3].mean(0)).all(), violation[[0, -1]]
    squares = np.array([f["output_square"] for f in figures])
    assert squares.min() > 0.5
    assert figures[-1]["task_loss"] < 0.7 * figures[0]["task_loss"]


def test_without_standardisation_the_scale_is_free():
    run = small_run(standardise=False, mesh__stage=1)
    _, figures = take_steps(run, 2)
    assert np.abs(figures[0]["output_square"] - 1).max() > 0.05


def test_the_same_seed_gives_the_same_run():
    (a, _), (b, _), (c, _) = (take_steps(small_run(seed=seed, mesh__stage=1), 2) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a.stage_params["kernel"], b.stage_params["kernel"])
    assert not np.array_equal(a.stage_params["kernel"], c.stage_params["kernel"])


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_meshes_write_the_same_metrics(stage, tmp_path, x64):
    """As one device: the order of sums differs, and training lets that grow a little."""
    runs = {}
    for devices in (1, stage):
        (tmp_path / str(devices)).mkdir()
        loop.train(small_run(mesh__stage=devices, num_steps=10, log_every=1), tmp_path / str(devices), quiet())
        runs[devices] = lines(tmp_path / str(devices))
    for one, other in zip(runs[1], runs[stage], strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"kind", *workdir.CLOCK}:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_non_finite_names_figure_stage_and_step(tmp_path):
    run = small_run(optimizer__learning_rate=1e12, optimizer__schedule="constant", num_steps=20)
    with pytest.raises(log.NonFiniteError, match=r"(at (stage|interface) \d )?is (nan|inf) in step \d+; lower"):
        loop.train(run, tmp_path, quiet())
    assert json.loads((tmp_path / "result.json").read_text())["ended"] == "error"


@pytest.mark.parametrize(
    "name, value, where",
    [
        ("stage_loss", [0.0, np.nan], "at stage 1"),
        ("violation", [np.inf], "at interface 1"),
        ("task_loss", np.nan, "is"),
    ],
)
def test_check_finite(name, value, where):
    axes = {"fine": "stage", "stage_loss": "stage", "violation": "interface", "task_loss": ""}
    with pytest.raises(log.NonFiniteError, match=f"{name} ?{where}.* in step 7"):
        log.check_finite(7, {"fine": np.zeros(3), name: np.asarray(value)}, axes)


def test_interrupted_runs_leave_readable_files(tmp_path, monkeypatch):
    run = small_run(num_steps=10, log_every=1)
    shown = []

    def interrupt(self, step, *_):
        shown.append(step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(log.Log, "_show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.train(run, tmp_path, quiet())
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["ended"], result["steps"], result["test_accuracy"]) == ("interrupted", 4, None)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2, 3, 4]


def test_tables_say_what_is_cut_where():
    run = small_run()
    console = quiet()
    summary.print_tables(console, run)
    text = console.file.getvalue()
    for expected in ("8x8x1", "block-8/2", "aux 3", "classifier-10", "of the network's forward cost", "padding of"):
        assert expected in text
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.network.params.trees))
    assert sum(map(chain_size, run.network.stages)) == parameters


def test_a_per_example_tables_size_is_said_before_it_is_made():
    config = small_config(multiplier="per_example", data__crop=0)
    run = runs.prepare(config)
    stated = device_bytes(run.network, config, 1437)["multipliers"]
    assert 4 * stated == sum(table.nbytes for table in run.create().multiplier)
    assert f"multipliers {stated / 1e6:,.1f}" in memory_in_words(run.network, config, 1437)


@pytest.mark.slow
def test_the_memory_estimate_is_about_what_the_compiler_says():
    """Of a network large enough that rounding up does not count."""
    for settings in ({}, {"method": "serial", "mesh__stage": 4}, {"remat": True, "multiplier": "adjoint"}):
        run = small_run(model={"depth": 20, "width": 16}, batch_size=256, dry_run=True, **settings)
        estimate = sum(device_bytes(run.network, run.config, run.spec.num_train).values())
        compiled = runs.trace(run).lower().compile().memory_analysis()
        needed = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
        assert 0.4 * needed < estimate < 2.5 * needed, (settings, estimate, needed)


def test_a_dry_run_reads_no_data(monkeypatch):
    """Nor needs its folder."""
    run = small_run(data={"name": "fashion_mnist", "dir": "nowhere", "crop": 1}, dry_run=True)
    assert run.feed is None
    assert run.spec == SOURCES["fashion_mnist"].published(run.config.data)
    with pytest.raises(FileNotFoundError, match=r"data\.dir=nowhere: no such folder"):
        small_run(data={"name": "fashion_mnist", "dir": "nowhere", "crop": 1})


def test_dry_run_compiles_and_says_what_a_device_needs():
    console = quiet()
    dry_run.dry_run(small_run(dry_run=True), console)
    assert "compiled in" in console.file.getvalue()
    assert "a device holds" in console.file.getvalue()
