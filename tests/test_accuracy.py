"""The experiments on accuracy: which split they are judged on, what joins what, and what becomes of the runs."""

import contextlib
import json
import unittest.mock
from functools import partial

import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.accuracy import accuracy, compare
from experiments.accuracy.tables import TABLES
from experiments.harness import plot
from experiments.harness.command import chosen
from experiments.harness.rows import fields_of, load
from lpjax.errors import BadInput

DIGITS = "configs/digits.py"


@pytest.fixture
def trained(monkeypatch):
    """Runs are made up: their accuracy is the seed; those of `local` fail when they are in `trained`."""
    failing = set()

    def sweep(todo, jobs, environment=None):
        for cell in todo:
            run = {"seed": cell.seed, "test_accuracy": float(cell.seed), "accuracy": [[1, 0.5]], "diagnosis": []}
            yield cell, None if cell.row in failing else run | {"seconds_per_step": 2.0}

    monkeypatch.setattr(accuracy, "sweep", sweep)
    return failing


def made(argv, out):
    """Exit code and JSON."""
    return chosen([*argv, f"--out={out}"], EXPERIMENTS), json.loads(out.read_text())


@pytest.mark.parametrize("name", TABLES)
def test_only_a_search_is_judged_on_the_validation_split(name):
    table = TABLES[name]
    assert table.first_seed == (100 if name == "search" else 0)
    for row in table.rows:
        config = load(table.config, table.fields | fields_of(row) | {"num_stages": 4, "dry_run": True})
        assert config.data.validation_examples == (10_000 if name == "search" else None)
        assert config.mesh.stage == 1


def test_a_search_tries_equally_many_settings_of_each_row(trained, tmp_path):
    argv = ["accuracy", "search", "--rows=local;serial", "--each=batch_size=32|64;optimizer.learning_rate=0.1|0.3"]
    _, found = made([*argv, "--seeds=1"], tmp_path / "a.json")
    names = list(found["by_row"])
    assert [name.split(", ")[0] for name in names] == ["local"] * 4 + ["serial"] * 4
    assert names[1] == "local, batch_size=32, optimizer.learning_rate=0.3"
    assert found["by_row"][names[1]] == {"method": "local", "batch_size": 32, "optimizer.learning_rate": 0.3}
    assert {run["seed"] for row in found["rows"] for run in row["runs"]} == {100}
    assert found["fields"]["data.validation_examples"] == 10_000


def test_rows_and_seeds_join_those_of_a_json(trained, tmp_path):
    out = tmp_path / "out.json"
    row = "coarse_adjoint, delayed from epoch 8"
    _, first = made(["accuracy", "digits", "--seeds=2", "--stages=8", f"--rows=local;{row}"], out)
    more = ["accuracy", "digits", "--seeds=3", "--first_seed=1", "--stages=8,4", "--rows=local;serial", "--add"]
    _, whole = made(more, out)
    assert [(r["row"], r["stages"], [run["seed"] for run in r["runs"]]) for r in whole["rows"]] == [
        ("local", 4, [1, 2, 3]),
        ("serial", 4, [1, 2, 3]),
        ("local", 8, [0, 1, 2, 3]),
        (row, 8, [0, 1]),
        ("serial", 8, [1, 2, 3]),
    ]
    assert whole["rows"][2]["accuracy_mean"] == 1.5
    assert whole["command"] == first["command"]
    assert [added["command"].split("--seeds=")[1].split()[0] for added in whole["added"]] == ["3"]
    with pytest.raises(BadInput, match=r"--add: fields \{"):
        chosen([*more, "--config.num_epochs=3", f"--out={out}"], EXPERIMENTS)
    whole["by_row"]["local"] = {"method": "other"}
    out.write_text(json.dumps(whole))
    with pytest.raises(BadInput, match=r"--add: row 'local' is \{"):
        chosen([*more, f"--out={out}"], EXPERIMENTS)


# compare --------------------------------------------------------------------------------------------------------------


def run_of(*accuracies, seconds):
    curve = [[5 * (i + 1), value] for i, value in enumerate(accuracies)]
    return {"seed": 0, "test_accuracy": accuracies[-1], "accuracy": curve, "seconds_per_step": seconds}


def test_the_picture_has_each_row_under_backprop_and_how_late_its_gradients_are(tmp_path):
    """One row is late, 2(K - 1) updates, and has a dotted line on the right; serial is the line at 0."""
    by_row = {row: fields_of(row) for row in ("serial", "local, sampled", "fdg")}
    found = [
        ("serial", 4, 0.9),
        ("local, sampled", 2, 0.88),
        ("local, sampled", 4, 0.85),
        ("fdg", 2, 0.89),
        ("fdg", 4, 0.8),
    ]
    rows = [{"row": row, "stages": K, "accuracy_mean": mean, "accuracy_std": None} for row, K, mean in found]
    drawn = {}
    with unittest.mock.patch.object(plot, "figure", partial(figure, drawn)):
        accuracy.draw(
            tmp_path / "a.svg", {"config": DIGITS, "fields": {"mesh.stage": 1}, "by_row": by_row, "rows": rows}
        )
    axis, right = drawn["axes"]
    lines = {container.get_label(): container[0].get_xydata().round(6).tolist() for container in axis.containers}
    assert lines == {"local, sampled": [[2, -2], [4, -5]], "fdg": [[2, -1], [4, -10]]}
    assert [line.get_xydata().tolist() for line in right.lines] == [[[2, 2], [4, 6]]]
    assert (tmp_path / "a.svg").exists()


@contextlib.contextmanager
def figure(drawn, *args, make=plot.figure, **options):
    with make(*args, **options) as (made, axis):
        yield made, axis
        drawn["axes"] = made.axes


def test_rows_of_a_comparison():
    fast, slow = run_of(0.5, 0.75, 0.9, seconds=0.5), run_of(0.7, 0.8, seconds=1.0)
    never = run_of(0.1, seconds=3.0)
    cost = {"held_bytes": 3_000_000, "temporary_bytes": 1_500_000, "exchanged_bytes_total": 250_000.0}
    ddg, fdg = (
        compare.measures({"row": name, "stages": 2, "n": len(runs), "runs": runs}, cost, 0.75)
        for name, runs in (("ddg", [fast, slow]), ("fdg", [fast, slow, never]))
    )
    assert (ddg["seconds_per_step"], ddg["seconds_per_step_min"], ddg["seconds_per_step_max"]) == (0.75, 0.5, 1.0)
    assert ddg["seconds_to_target"] == pytest.approx((10 * 0.5 + 10 * 1.0) / 2)
    assert fdg["seconds_to_target"] is None, "one seed never gets there"


@pytest.mark.slow
def test_a_tiny_comparison(tmp_path):
    argv = ["compare", f"--config={DIGITS}", "--rows=serial;coarse_tail", "--stages=2", "--seeds=1", "--diagnose=2"]
    fields = ["--config.num_steps=4", "--config.model.depth=8", "--config.model.width=4"]
    argv += [*fields, f"--runs={tmp_path / 'runs'}", "--target=0.01"]
    code, found = made(argv, tmp_path / "out.json")
    assert code == 0
    serial, layers = found["rows"]
    assert (serial["speedup"], serial["exchanged_bytes"]) == (1.0, 0)
    assert layers["exchanged_bytes"] > 0
    for row in found["rows"]:
        (run,) = row["runs"]
        assert [step for step, _ in run["accuracy"]] == [4]
        assert [step for step, *_ in run["diagnosis"]] == [2, 4]
        assert row["seconds_to_target"] == pytest.approx(4 * row["seconds_per_step"])
    assert serial["runs"][0]["diagnosis"][0][1] == pytest.approx([1.0, 1.0], abs=1e-4), "serial is backprop"
    before = (tmp_path / "runs/serial-2-0/result.json").stat().st_mtime_ns
    assert made(argv, tmp_path / "out.json")[0] == 0
    assert (tmp_path / "runs/serial-2-0/result.json").stat().st_mtime_ns == before, "kept"
