"""A run from its parts: files, figures, learning, and the ways it ends."""

import dataclasses
import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_run, take_steps
from rich.console import Console
from test_stream import Memory, make_stream, slow, streamed

from lpjax.config.schema.penalty import POLICIES
from lpjax.data import SOURCES, stream
from lpjax.training import loop, workdir
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
    serial = partial(small_run, method="serial")
    loop.train(serial(num_steps=1), tmp_path, quiet())
    before = (tmp_path / "metrics.jsonl").read_text()
    loop.train(serial(num_steps=2, seed=1), tmp_path, quiet(), restart=True)
    assert (tmp_path / "previous-1" / "metrics.jsonl").read_text() == before
    assert (tmp_path / "previous-1" / "checkpoints" / "1").is_dir()
    assert len(lines(tmp_path)) == 2
    loop.train(serial(num_steps=1), tmp_path, quiet(), restart=True)
    assert json.loads((tmp_path / "previous-2" / "result.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "policy", [pytest.param(p, marks=[pytest.mark.slow] * (p in ("none", "mean"))) for p in POLICIES]
)
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


def test_the_same_seed_gives_the_same_run():
    (a, _), (b, _), (c, _) = (
        take_steps(small_run(seed=seed, multiplier="none", mesh__stage=1), 2) for seed in (3, 3, 4)
    )
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


def test_a_dry_run_reads_no_data(monkeypatch):
    """Nor needs its folder."""
    run = small_run(data={"name": "fashion_mnist", "dir": "nowhere", "crop": 1}, dry_run=True)
    assert run.feed is None
    assert run.spec == SOURCES["fashion_mnist"].published(run.config.data)
    with pytest.raises(FileNotFoundError, match=r"data\.dir=nowhere: no such folder"):
        small_run(data={"name": "fashion_mnist", "dir": "nowhere", "crop": 1})
