"""The accuracy tables: what is compared with what, on which split, and what becomes of the figures."""

import io
import json
from dataclasses import replace

import pytest
from helpers import small_run
from rich.console import Console

from experiments import accuracy, compare, recalibration
from experiments.compare import load
from lpjax.training import loop


@pytest.mark.parametrize("name", accuracy.TABLES)
def test_only_the_search_is_judged_on_the_validation_split(name):
    table = accuracy.TABLES[name]
    for row, fields in table.rows.items():
        config = load(table.config, table.fields | fields | {"num_stages": 4, "dry_run": True})
        assert config.data.validation_examples == (10_000 if name == "search" else None)
        if name not in accuracy.PAPER:
            longer = row == "recipe, delayed from epoch 10 of 18"
            assert config.num_epochs == (30 if name == "digits" else 18 if longer else 15)
            assert config.model.arguments["depth"] == {"deep": 56, "digits": 26}.get(name, 20)
    assert table.first_seed == (100 if name == "search" else 0)


@pytest.mark.parametrize("name", accuracy.PAPER)
def test_full_size_rows_can_be_told_on_the_command_line(name):
    """What a row sets can be an argument, so that the runs are of the row's configuration."""
    table = accuracy.TABLES[name]
    for fields in table.rows.values():
        assert None not in fields.values()
        config = load(table.config, fields | {"dry_run": True})
        assert config.method == fields["method"]
        assert config.phases.epochs in ((), (config.num_epochs / 2,))


@pytest.mark.parametrize("name, examples", [("cifar10", 10_000), ("cifar100", 50_000)])
def test_cifar_is_the_final_table_on_another_set(name, examples):
    final, other = accuracy.TABLES["final"], accuracy.TABLES[name]
    for row, fields in final.rows.items():
        shared = fields | {"num_stages": 4, "dry_run": True}
        ours, theirs = (load(table.config, table.fields | shared) for table in (other, final))
        assert replace(ours, data=theirs.data) == theirs
        assert (ours.data.name, ours.data.shrink, ours.data.train_examples) == (name, 2, examples)
        assert other.rows[row] == fields


def test_rows_of_the_ablation_differ_from_the_recipe():
    recipe, *others = accuracy.ABLATION.values()
    assert recipe == accuracy.RECIPE
    assert all(fields != recipe for fields in others)


def test_rows_and_their_table():
    runs = [{"test_accuracy": value} for value in (0.8, 0.82)]
    rows = [accuracy.summary("a", 2, runs), accuracy.summary("a", 4, runs[:1]), accuracy.summary("b", 4, runs[1:])]
    assert rows[0]["accuracy_std"] == pytest.approx(0.01 * 2**0.5)
    assert accuracy.markdown(json.loads(json.dumps(rows))).splitlines() == [
        "| | K = 2 | K = 4 |",
        "|---|---|---|",
        "| a | 81.00 ± 1.41 (2) | 80.00 (1) |",
        "| b |  | 82.00 (1) |",
    ]


@pytest.mark.parametrize(
    "argv, message", [(["search", "--rows=nothing"], "'nothing'"), (["final", "--config.num_epoch=3"], "num_epoch")]
)
def test_bad_input_starts_nothing(argv, message, capsys, tmp_path):
    assert accuracy.main([*argv, f"--runs={tmp_path}", f"--out={tmp_path / 'out.json'}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_published_json_can_be_read():
    for path in accuracy.Path("experiments/results").glob("*.json"):
        assert {"command", "date", "commit", "hardware"} <= set(json.loads(path.read_text())), path


def test_jobs_that_end_together_are_all_written(monkeypatch, tmp_path):
    out = tmp_path / "out.json"
    monkeypatch.setattr(accuracy, "finished", lambda folder, config: {"test_accuracy": 0.5})
    monkeypatch.setattr(accuracy, "entry", lambda folder, result, target: {"test_accuracy": 0.5})
    assert accuracy.main(["digits", "--seeds=40", "--jobs=16", "--rows=serial;local", f"--out={out}"]) == 0
    assert [row["n"] for row in json.loads(out.read_text())["rows"]] == [40, 40]


def test_a_row_without_runs_is_told_as_failed_only(monkeypatch, tmp_path):
    out = tmp_path / "out.json"
    monkeypatch.setattr(
        accuracy, "finished", lambda folder, config: None if "local" in folder.name else {"test_accuracy": 0.5}
    )
    monkeypatch.setattr(accuracy, "trained", lambda command: False)
    monkeypatch.setattr(accuracy, "entry", lambda folder, result, target: result)
    assert accuracy.main(["digits", "--seeds=1", "--rows=serial;local", f"--out={out}"]) == 1
    whole = json.loads(out.read_text())
    assert [(row["row"], row["n"]) for row in whole["rows"]] == [("serial", 1)]
    assert whole["failed"] == ["local, K = 4, seed 0"]


def test_a_row_in_phases_joins_its_own(monkeypatch, tmp_path):
    """Its fields are tuples, which a file keeps as lists."""
    monkeypatch.setattr(accuracy, "finished", lambda folder, config: {"test_accuracy": 0.5})
    monkeypatch.setattr(accuracy, "entry", lambda folder, result, target: result)
    common = ["final", f"--out={tmp_path / 'out.json'}", "--rows=recipe, delayed from epoch 8", "--jobs=1", "--seeds=1"]
    assert accuracy.main(common) == 0
    assert accuracy.main([*common, "--first_seed=5", "--add"]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [run["seed"] for run in row["runs"]] == [0, 5]


def test_rows_and_seeds_join_those_of_a_json(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(accuracy, "finished", lambda folder, config: {"test_accuracy": float(folder.name[-1])})
    monkeypatch.setattr(accuracy, "entry", lambda folder, result, target: result)
    common = ["digits", f"--out={out}", "--jobs=1"]
    assert accuracy.main([*common, "--seeds=2", "--stages=8", "--rows=local"]) == 0
    first = json.loads(out.read_text())
    assert accuracy.main([*common, "--seeds=3", "--first_seed=1", "--stages=8,4", "--rows=local;serial", "--add"]) == 0
    whole = json.loads(out.read_text())
    found = [(row["row"], row["stages"], [run["seed"] for run in row["runs"]]) for row in whole["rows"]]
    assert found == [
        ("serial", 4, [1, 2, 3]),
        ("local", 4, [1, 2, 3]),
        ("serial", 8, [1, 2, 3]),
        ("local", 8, [0, 1, 2, 3]),
    ]
    assert whole["rows"][-1]["accuracy_mean"] == 1.5
    assert whole["command"] == first["command"]
    assert [added["command"].split("--seeds=")[1].split()[0] for added in whole["added"]] == ["3"]
    assert list(whole["by_row"]) == ["local", "serial"]
    whole["by_row"]["gone"] = {"method": "other"}
    whole["rows"].append(accuracy.summary("gone", 4, [{"seed": 0, "test_accuracy": 0.5}]))
    out.write_text(json.dumps(whole))
    assert accuracy.main([*common, "--seeds=1", "--stages=4", "--rows=local", "--add"]) == 0
    whole = json.loads(out.read_text())
    assert [row["row"] for row in whole["rows"] if row["stages"] == 4] == ["serial", "local", "gone"]
    whole["by_row"]["recipe"] = {"method": "other"}
    out.write_text(json.dumps(whole))
    for other, message in (("--config.num_epochs=3", "--add: fields {"), ("--rows=recipe", "--add: row 'recipe' is {")):
        assert accuracy.main([*common, "--add", "--rows=local", other]) == 2
        assert message in capsys.readouterr().err
        assert json.loads(out.read_text()) == whole


def test_a_run_is_tested_by_both_statistics(tmp_path):
    """As in training it is what the run said itself."""
    workdir = tmp_path / "recipe,_no_block-4-3"
    run = small_run(mesh__stage=1, num_steps=20, seed=3, method="coarse_adjoint", data__flip=True)
    loop.train(run, workdir, Console(file=io.StringIO()))
    config = compare.config_of(workdir)
    assert replace(config, mesh=run.config.mesh) == run.config
    tested = recalibration.tested(config, workdir)
    assert tested["as in training"] == json.loads((workdir / "result.json").read_text())["test_accuracy"]
    assert tested["as they are"] != tested["as in training"]
    rows = [
        {"data": "digits", "stages": 4, "row": "recipe", "runs": [{"as in training": 0.7, "as they are": 0.65}] * 2}
    ]
    assert recalibration.markdown(rows).splitlines()[2:] == [
        "| digits | 4 | recipe | 70.00 ± 0.00 | 65.00 ± 0.00 | 5.0, 5.0 |"
    ]
