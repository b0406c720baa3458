"""The comparison of methods: what it makes of run folders, and a tiny one from end to end."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import compare

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/digits.py"


def make_run(folder, config, *, ended="finished", accuracies=((5, 0.5), (10, 0.75), (15, 0.9)), seconds=0.5):
    """A run's folder, made up."""
    folder.mkdir(parents=True)
    result = {"ended": ended, "test_accuracy": accuracies[-1][1], "seconds_per_step_median": seconds, "steps": 15}
    (folder / "result.json").write_text(json.dumps(result | {"relative_violation": [0.25]}))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    lines = [{"kind": "eval", "step": step, "test_accuracy": value} for step, value in accuracies]
    lines.append({"kind": "train", "step": 5, "task_loss": 1.0})
    lines.append({"kind": "train", "step": 6, "gradient_cosine": [0.5, 1.0], "gradient_ratio": [1.0, 2.0]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return result


def entry(folder, config, target=0.75, **fields):
    make_run(folder, config, **fields)
    return compare.entry(folder, compare.finished(folder, config), target)


@pytest.fixture
def config():
    return compare.load(CONFIG, compare.row_fields("ddg", 2, 30))


def test_what_is_kept_of_a_run(tmp_path, config):
    kept = entry(tmp_path / "run", config)
    assert kept["accuracy"] == [[5, 0.5], [10, 0.75], [15, 0.9]]
    assert kept["diagnosis"] == [[6, [0.5, 1.0], [1.0, 2.0]]]
    assert kept["relative_violation"] == [0.25]
    assert kept["seconds_to_target"] == 10 * 0.5


def test_seconds_to_target():
    curve = [[5, 0.5], [10, 0.8], [15, 0.7]]
    assert compare.seconds_to_target(curve, 0.8, 2.0) == 20
    assert compare.seconds_to_target(curve, 0.1, 2.0) == 10
    assert compare.seconds_to_target(curve, 0.81, 2.0) is None
    assert compare.seconds_to_target(curve, 0.1, None) is None


def test_rows(tmp_path, config):
    fast = entry(tmp_path / "a", config, seconds=0.5)
    slow = entry(tmp_path / "b", config, seconds=1.0, accuracies=((5, 0.7), (10, 0.8)))
    never = entry(tmp_path / "c", config, seconds=3.0, accuracies=((5, 0.1),))
    cost = {
        "held_bytes": 3_000_000,
        "temporary_bytes": 1_500_000,
        "exchanged_bytes_total": 250_000.0,
        "exchanged_bytes": {"psum": 250_000.0},
    }
    rows = compare.with_speedup(
        [
            compare.summarise("serial", 2, [slow], cost, 0.75),
            compare.summarise("ddg", 2, [fast, slow], cost, 0.75),
            compare.summarise("fdg", 2, [fast, slow, never], None, 0.75),
            compare.summarise("local", 2, [], None, 0.75),
            compare.summarise("ddg", 4, [fast], cost, 0.75),
        ]
    )
    serial, ddg, fdg, local, other = rows
    assert ddg["n"] == 2
    assert ddg["test_accuracy_mean"] == pytest.approx(0.85)
    assert ddg["test_accuracy_std"] == pytest.approx(0.1 / 2**0.5)
    assert (ddg["seconds_per_step"], ddg["seconds_per_step_min"], ddg["seconds_per_step_max"]) == (0.75, 0.5, 1.0)
    assert ddg["speedup"] == pytest.approx(1.0 / 0.75)
    assert ddg["seconds_to_target"] == pytest.approx((10 * 0.5 + 10 * 1.0) / 2)
    assert (serial["speedup"], serial["test_accuracy_std"]) == (1.0, None)
    assert fdg["seconds_per_step"] == 1.0
    assert fdg["seconds_to_target"] is None, "one seed never gets there"
    assert (local["n"], local["test_accuracy_mean"], local["speedup"]) == (0, None, None)
    assert other["speedup"] is None, "there is no serial row of this K"
    lines = compare.markdown(rows).splitlines()
    assert "s to 75 %" in lines[0]
    assert lines[3] == "| 2 | ddg | 85.00 ± 7.07 (2) | 0.750 | 1.33 | 8 | 4.5 | 0.25 |"
    assert lines[5] == "| 2 | local | (0) |  |  |  |  |  |"


def test_only_finished_runs_of_the_same_configuration_are_kept(tmp_path, config):
    make_run(tmp_path / "done", config)
    assert compare.finished(tmp_path / "done", config)["test_accuracy"] == 0.9
    assert compare.finished(tmp_path / "none", config) is None
    make_run(tmp_path / "killed", config, ended="interrupted")
    assert compare.finished(tmp_path / "killed", config) is None

    def changed(**fields):
        return compare.finished(tmp_path / "done", dataclasses.replace(config, **fields))

    assert changed(num_epochs=31) is None
    assert changed(diagnose_every=7) is None
    assert changed(delayed=dataclasses.replace(config.delayed, variant="fdg")) is None
    assert changed(model=dataclasses.replace(config.model, arguments={"depth": 8, "width": 16})) is None
    assert changed(watch=dataclasses.replace(config.watch, stall_seconds=1.0))

    dotted = dataclasses.replace(config.model, function="lpjax.models.resnet:resnet")
    make_run(tmp_path / "dotted", dataclasses.replace(config, model=dotted))
    assert compare.finished(tmp_path / "dotted", config), "the same function"


def test_fields_of_a_row():
    assert compare.row_fields("ddg", 4, 5) == {"method": "delayed", "delayed.variant": "ddg", "num_stages": 4}
    assert compare.row_fields("delayed", 2, 5, devices=1) == {"method": "delayed", "num_stages": 2, "mesh.stage": 1}
    assert compare.row_fields("coarse_tail", 2, 5)["aux.grid"] is None, "whatever the config file has"
    assert compare.row_fields("coarse_adjoint_grid", 2, 5)["aux.grid"] == 8
    assert "mesh.stage" not in compare.row_fields("serial", 2, 5, devices=2)
    hybrid = compare.load(CONFIG, compare.row_fields("hybrid", 4, 5) | {"num_epochs": 5})
    assert (hybrid.phases.methods, hybrid.phases.epochs) == (("layer_parallel", "serial"), (4.0,))
    with pytest.raises(ValueError, match="'nonsense': expected of serial, data_parallel"):
        compare.row_fields("nonsense", 2, 5)
    assert compare.parsed(["--config.a.b=2", "--config.c=x"]) == {"a.b": 2, "c": "x"}
    with pytest.raises(ValueError, match="--nonsense=1: expected --config"):
        compare.parsed(["--nonsense=1"])


def test_every_row_builds_on_the_small_config():
    path = ROOT / "configs/fashion_mnist_small.py"
    for row in compare.ROWS:
        config = compare.load(path, compare.row_fields(row, 4, 5))
        assert config.mesh_shape == (1 if row == "serial" else 4, 1)


def test_curves_over_seeds():
    assert compare.over_seeds([[[1, 0.1], [2, 0.2]], [[2, 0.4], [3, 0.5]]]) == ([2], [[0.2, 0.4]])
    row = {"runs": [{"diagnosis": [[6, [0.5, 1.0], [1, 1]]]}, {"diagnosis": []}]}
    assert compare.cosine_curve(row) == ([6], [[0.75]])


def test_figures_name_their_rows(tmp_path, config):
    runs = [entry(tmp_path / name, config, seconds=s) for name, s in (("a", 0.5), ("b", 1.0))]
    rows = [compare.summarise(name, K, runs, None, 0.75) for K in (2, 4) for name in ("serial", "ddg")]
    for kind, label in (("accuracy", "training seconds"), ("cosine", "cosine with backprop")):
        compare.draw(rows, tmp_path / f"{kind}.svg", kind)
        text = (tmp_path / f"{kind}.svg").read_text()
        assert all(part in text for part in ("K = 2", "K = 4", ">serial<", ">ddg<", label))


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """The processes are made up."""
    fields = {"num_epochs": 30}

    def call(command):
        folder = Path(command[-1].removeprefix("--workdir="))
        if "--config.dry_run=True" in command:
            folder.mkdir(parents=True)
            (folder / "cost.json").write_text(json.dumps({"held_bytes": 1, "temporary_bytes": 1}))
            return True
        row, K, seed = folder.name.rsplit("-", 2)
        if (row, seed) == ("ddg", "0"):
            return False
        make_run(folder, compare.load(CONFIG, fields | compare.row_fields(row, int(K), 30)))
        order.append(folder.name)
        return True

    order = []
    monkeypatch.setattr(compare, "call", call)
    options = [f"--config={CONFIG}", "--methods=serial,ddg", "--stages=2,4", "--seeds=2"]
    options += [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out' / 'compare.json'}"]
    assert compare.main(options) == 1
    assert order == ["serial-2-0", "serial-4-0", "serial-2-1", "ddg-2-1", "serial-4-1", "ddg-4-1"]
    written = json.loads((tmp_path / "out/compare.json").read_text())
    assert [(row["row"], row["stages"], row["n"]) for row in written["rows"]] == [
        ("serial", 2, 2),
        ("ddg", 2, 1),
        ("serial", 4, 2),
        ("ddg", 4, 1),
    ]
    assert "ddg, K = 2, seed 0: failed" in capsys.readouterr().out
    order.clear()
    assert compare.main(options) == 1
    assert order == [], "finished cells are kept"


@pytest.mark.slow
def test_a_tiny_comparison(tmp_path):
    out = tmp_path / "compare.json"
    options = [f"--config={CONFIG}", "--methods=serial,layer_parallel", "--stages=2", "--seeds=1", "--diagnose=2"]
    fields = ["--config.num_steps=4", "--config.model.depth=8", "--config.model.width=4"]
    assert compare.main([*options, f"--runs={tmp_path / 'runs'}", f"--out={out}", "--target=0.01", *fields]) == 0
    written = json.loads(out.read_text())
    assert {"command", "date", "commit", "hardware", "versions"} <= written.keys()
    assert written["overrides"] == {"num_steps": 4, "model.depth": 8, "model.width": 4}
    serial, layers = written["rows"]
    assert (serial["speedup"], serial["exchanged_bytes"]) == (1.0, 0)
    assert layers["exchanged_bytes"] > 0
    for row in written["rows"]:
        (run,) = row["runs"]
        assert [step for step, _ in run["accuracy"]] == [4]
        assert [step for step, *_ in run["diagnosis"]] == [2, 4]
        assert row["seconds_to_target"] == pytest.approx(4 * row["seconds_per_step"])
    (run,) = serial["runs"]
    assert run["diagnosis"][0][1] == pytest.approx([1.0, 1.0], abs=1e-4), "serial is backprop"
    assert len(layers["runs"][0]["relative_violation"]) == 1
    assert (tmp_path / "compare_accuracy.svg").exists()
    assert (tmp_path / "compare_cosine.svg").exists()
    before = (tmp_path / "runs/serial-2-0/result.json").stat().st_mtime_ns
    assert compare.main([*options, f"--runs={tmp_path / 'runs'}", f"--out={out}", *fields]) == 0
    assert (tmp_path / "runs/serial-2-0/result.json").stat().st_mtime_ns == before, "kept"


def test_a_config_file_with_a_grid_is_refused_for_rows_without_one(tmp_path, capsys):
    """Before anything is trained: the command line cannot unset a field."""
    arguments = ["--config=configs/cifar10_resnet56.py", "--methods=coarse_tail", f"--runs={tmp_path / 'runs'}"]
    assert compare.main([*arguments, f"--out={tmp_path / 'out.json'}"]) == 2
    assert "has aux.grid, which row coarse_tail is without" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
