"""What the experiments share: command line, rows, runs that are kept, statistics, and the pages that docs writes."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.docs import docs
from experiments.harness import command, runs, stats
from experiments.harness.command import chosen
from experiments.harness.experiment import Experiment
from experiments.harness.rows import ROWS, fields_of, in_numbers, load, parsed
from lpjax.errors import BadInput

ROOT = Path(__file__).parent.parent
DIGITS, SMALL, CIFAR = (f"configs/{name}.py" for name in ("digits", "fashion_mnist_small", "cifar10_resnet110"))


# command line ---------------------------------------------------------------------------------------------------------


def test_the_json_is_written_after_every_part_with_its_provenance(tmp_path):
    """Exit code 1 where the last one names a failure."""
    out = tmp_path / "new" / "a.json"
    seen = []

    def run(call, count: int = 3, fails: bool = False):
        yield {"rows": [count], "failed": ["a"]}
        seen.append(json.loads(out.read_text())["rows"])
        yield {"rows": [count, call.fields], "failed": ["a"] * fails}

    made = Experiment(run, config="", out="some")
    assert command.perform(made, [f"--out={out}", "--count=4", "--config.aux.width=0.5"]) == 0
    written = json.loads(out.read_text())
    assert (seen, written["rows"]) == ([[4]], [4, {"aux.width": 0.5}])
    assert written["command"].startswith("python -m experiments test_harness --out=")
    assert {"date", "commit", "hardware", "versions"} <= written.keys()
    assert command.perform(made, [f"--out={out}", "--fails"]) == 1
    with pytest.raises(BadInput, match="--nonsense: no such option"):
        command.perform(dataclasses.replace(made, config=None), ["--nonsense"])


# rows -----------------------------------------------------------------------------------------------------------------


def test_fields_of_rows():
    assert fields_of("serial") == {"method": "serial"}
    own = {"method": "coarse_adjoint", "aux.grid": "half"}
    assert fields_of("coarse_adjoint, tied, 18 epochs") == own | {"aux.tied": True, "num_epochs": 18}
    phases = {"phases.methods": ("coarse_adjoint", "delayed"), "phases.epochs": (8.0,)}
    assert fields_of("coarse_adjoint, delayed from epoch 8") == own | phases
    phases = {"phases.methods": ("coarse_adjoint", "serial"), "phases.by": "cosine", "phases.threshold": 0.4}
    assert fields_of("coarse_adjoint, serial by cosine 0.4") == own | phases
    assert fields_of("serial, deep supervision 0.3") == {"method": "serial", "serial.deep_supervision": 0.3}
    assert fields_of("local, local.blocks=2") == {"method": "local", "local.blocks": 2}
    sampled = {"local.classifier": "sampled", "local.residue": 0.5}
    assert fields_of("local, sampled, residue 0.5") == {"method": "local"} | sampled
    for row, message in (("nonsense", "expected one of"), ("local, nonsense", "row change 'nonsense'")):
        with pytest.raises(BadInput, match=message):
            fields_of(row)
    assert parsed(["--config.a.b=2", "--config.c=x"]) == {"a.b": 2, "c": "x"}
    with pytest.raises(BadInput, match="--nonsense=1: expected --config"):
        parsed(["--nonsense=1"])


@pytest.mark.parametrize("path, half", [(DIGITS, 4), (SMALL, 8), (CIFAR, 16), ("configs/imagenet_resnet50.py", 28)])
def test_a_grid_is_a_share_of_the_images(path, half):
    """Of 8x8, 14x14 and 32x32; of ImageNet's as the file has it."""
    told = in_numbers(path, {**fields_of("coarse_adjoint"), "num_stages": 4, "dry_run": True})
    assert (told["aux.grid"], load(path, told).aux.grid) == (half, half)
    assert load(path, fields_of("coarse_adjoint, quarter grid") | {"dry_run": True}).aux.grid == half // 2


@pytest.mark.parametrize("row", ROWS)
def test_every_row_builds(row):
    assert load(SMALL, in_numbers(SMALL, fields_of(row) | {"num_stages": 4})).mesh_shape == (4, 1)


# runs -----------------------------------------------------------------------------------------------------------------


def make_run(folder, config, *, ended="finished", accuracies=((5, 0.5), (10, 0.75), (15, 0.9)), seconds=0.5):
    """A run's folder, made up."""
    folder.mkdir(parents=True)
    made = {"ended": ended, "test_accuracy": accuracies[-1][1], "seconds_per_step_median": seconds, "steps": 15}
    (folder / "result.json").write_text(json.dumps(made))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    lines = [{"kind": "eval", "step": step, "test_accuracy": value} for step, value in accuracies]
    lines.append({"kind": "train", "step": 5, "task_loss": 1.0})
    lines.append({"kind": "train", "step": 6, "gradient_cosine": [0.5, 1.0], "gradient_ratio": [1.0, 2.0]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_finished_runs_of_the_same_configuration_are_kept(tmp_path):
    config = load(DIGITS, fields_of("ddg") | {"num_stages": 2})
    make_run(tmp_path / "done", config)
    found = runs.finished(tmp_path / "done", config)
    assert runs.entry(tmp_path / "done", found)["accuracy"] == [[5, 0.5], [10, 0.75], [15, 0.9]]
    assert runs.entry(tmp_path / "done", found)["diagnosis"] == [[6, [0.5, 1.0], [1.0, 2.0]]]
    assert runs.finished(tmp_path / "none", config) is None
    make_run(tmp_path / "killed", config, ended="interrupted")
    assert runs.finished(tmp_path / "killed", config) is None
    assert runs.finished(tmp_path / "done", dataclasses.replace(config, num_epochs=31)) is None
    assert runs.finished(tmp_path / "done", dataclasses.replace(config, seed=7)), "the folder's name has it"


def test_a_sweep_trains_what_is_missing(tmp_path, monkeypatch):
    rows = {row: fields_of(row) for row in ("serial", "ddg")}
    todo = runs.cells({"config": DIGITS, "fields": {}}, rows, "2,4", range(2), tmp_path)
    make_run(todo[0].folder, todo[0].config)
    started = []

    def call(module, words, environment):
        (cell,) = [cell for cell in todo if f"--workdir={cell.folder}" == words[-1]]
        started.append((module, cell.name, environment))
        if cell.row == "serial":
            make_run(cell.folder, cell.config)
        return cell.row == "serial"

    monkeypatch.setattr(runs, "call", call)
    found = {cell.name: run for cell, run in runs.sweep(todo, 2, runs.ONE_CORE)}
    assert len(found) == 8
    assert {name for name, run in found.items() if run is None} == {cell.name for cell in todo if cell.row == "ddg"}
    assert found["serial, K = 4, seed 1"]["command"].endswith("--config.num_stages=4 --config.seed=1")
    assert len(started) == 7
    assert ("main", todo[0].name, runs.ONE_CORE) not in started, "it was finished"


# statistics and tables ------------------------------------------------------------------------------------------------


def of_seeds(name, stages, **by_seed):
    return stats.summary(name, stages, [{"seed": int(s[1:]), "test_accuracy": value} for s, value in by_seed.items()])


def test_means_and_paired_differences():
    row, base = of_seeds("a", 4, s0=0.5, s1=0.6), of_seeds("serial", 2, s0=0.49, s1=0.57, s2=0.9)
    assert (row["accuracy_mean"], row["accuracy_std"]) == (0.55, pytest.approx(0.1 / 2**0.5))
    assert stats.difference(row, base) == "+2.00 ± 1.00 (2)", "over the seeds that both have"
    assert stats.difference(row, of_seeds("b", 4, s0=0.1)) == stats.difference(row, None) == ""
    assert of_seeds("b", 4, s0=0.1)["accuracy_std"] is None
    assert stats.row_of([row, base], "serial", 8) is base
    assert stats.row_of([row, base], "a", 8) is None
    assert stats.row_of([row | {"row": "serial, deep supervision 0.1"}], "serial, deep supervision 0.1", 8) is None
    assert stats.spread([3.0, 1.0, 2.5]) == {"median": 2.5, "min": 1.0, "max": 3.0}
    timed = [{"a": [1.0, 9.0], "b": 5.0}, {"a": [2.0, 3.0], "b": 4.0}, {"a": [7.0, 4.0], "b": 6.0}]
    assert stats.medians(timed) == {"a": [2.0, 4.0], "b": 5.0}


# docs -----------------------------------------------------------------------------------------------------------------


def test_pages_that_are_not_what_would_be_written_are_found(tmp_path):
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("![m](docs/figures/method.svg)\n<!-- kills -->\n<!-- end -->\n")
    (tmp_path / "docs/results/a.md").write_text("nothing\n")
    run = ["docs", f"--root={tmp_path}"]
    assert chosen([*run, "--check"], EXPERIMENTS) == 1
    assert "kills -->\n<!-- end" in (tmp_path / "README.md").read_text()
    assert chosen(run, EXPERIMENTS) == 0
    assert docs.TABLES["kills"].text() in (tmp_path / "README.md").read_text()
    picture = tmp_path / "docs/figures/method.svg"
    assert chosen([*run, "--check"], EXPERIMENTS) == 0
    picture.write_text(picture.read_text().replace("all stages", "some stages"))
    assert chosen([*run, "--check"], EXPERIMENTS) == 1
