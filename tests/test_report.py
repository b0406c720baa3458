"""The page of runs: what is read of their folders, what is drawn, and what is said of what is not."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from run_folders import K, eval_line, finished, train_line, write_json, write_lines

from lpjax.methods import METHODS
from lpjax.nn.count import chain_flops, chain_size
from lpjax.nn.schedule import Work, from_json
from lpjax.report import __main__ as command
from lpjax.report import curves, drawings, page, schedule
from lpjax.report.lines import extremes
from lpjax.report.record import read
from lpjax.training.summary import describe, item_flops, units
from tests.helpers import built


def all_charts(records):
    made = [curves.learning, curves.stages, curves.constraints, curves.gradients]
    made += [drawings.cuts, drawings.schedules, drawings.times]
    return {chart.key: chart for make in made for chart in make(records)} | {"wait": curves.waiting(records)}


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("tail", ['{"kind": "train", "step": 4, "accuracy": 1.0}', "\0\0"])
def test_a_torn_last_line_is_left_out_and_said(tmp_path, tail):
    write_lines(tmp_path, [train_line(step) for step in (1, 2, 3)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    found = read(tmp_path)
    assert found.lines["accuracy"][0].step.tolist() == [1, 2, 3]
    assert "torn" in found.notes[0]
    assert found.ended == "going on, or killed"


def test_lines_that_cannot_be_read_are_counted(tmp_path):
    good = json.dumps(train_line(2))
    bad = ["{", "[]", '{"step": 3}', '{"kind": "train", "step": "x"}', '{"kind": "other", "step": 1}', "\0", ""]
    bad += ['{"kind": "train", "step": 3, "accuracy": {}}', '{"kind": "train", "step": 3, "accuracy": [[1]]}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*bad, good]) + "\n")
    found = read(tmp_path)
    assert found.lines["accuracy"][0].step.tolist() == [2]
    assert f"{len(bad)} lines" in found.notes[0]


def test_not_a_number_is_a_gap(tmp_path):
    """As is what a list is too short for."""
    short = {"relative_violation": [0.5]}
    found = read(write_lines(tmp_path, [train_line(1), train_line(2, task_loss=math.nan), train_line(3, **short)]))
    assert np.isnan(found.lines["task_loss"][0].value).tolist() == [False, True, False]
    assert np.isnan(found.lines["relative_violation"][1].value).tolist() == [False, False, True]
    assert not any("cannot be read" in note for note in found.notes)
    page.render([found])


def test_steps_in_which_the_last_stage_had_no_batch_are_no_points(tmp_path):
    """As `coarse_adjoint` and `delayed` record them; an accuracy of 0 with a loss is one."""
    idle = [train_line(step, task_loss=0.0, accuracy=0.0) for step in (1, 2)]
    lines = read(write_lines(tmp_path, [*idle, train_line(3, accuracy=0.0), train_line(4, task_loss=0.0)])).lines
    assert [lines[name][0].step.tolist() for name in ("task_loss", "accuracy", "data_seconds")] == [
        [3, 4],
        [3, 4],
        [1, 2, 3, 4],
    ]


@pytest.mark.parametrize("missing", ["config", "result", "structure", "seconds", "metrics"])
def test_a_run_with_missing_pieces(tmp_path, missing):
    finished(tmp_path)
    (tmp_path / f"{missing}.json").unlink(missing_ok=True)
    if missing == "metrics":
        write_lines(tmp_path, [train_line(1), train_line(2)])  # and no evaluation
    found = read(tmp_path)
    text = page.render([found])
    said = missing in ("config", "result", "structure")
    assert (f"no {missing}.json" in found.notes) == (f"no {missing}.json" in text) == said
    assert (all_charts([found])["paths"].figure is None) == (missing == "metrics")
    assert (found.ended == "finished") == (missing not in ("result", "metrics"))


@pytest.mark.parametrize("content", ["{", '{"stages": 1}'])
def test_damaged_files_are_said_and_left_out(tmp_path, content):
    finished(tmp_path)
    write_json(tmp_path, structure=content, config="{", result="[1]")
    found = read(tmp_path)
    assert (found.structure, found.config, found.result, found.measured) == (None,) * 4
    named = [note.split(" cannot")[0] for note in found.notes if "cannot" in note]
    assert named == ["config.json", "result.json", "structure.json"]
    page.render([found])


# ------------------------------------------------------------------------------------------------------------ thinning


@pytest.mark.parametrize("n", [99, 101, 1234])
def test_fewer_points_keep_extremes_and_ends(n):
    value = np.random.default_rng(n).normal(size=n)
    value[n // 3], value[n // 2] = 50.0, -50.0
    keep = extremes(value, 100)
    assert len(keep) <= max(100, 0) or n <= 100
    assert (np.diff(keep) > 0).all()
    assert {0, n - 1, int(value.argmax()), int(value.argmin())} <= set(keep.tolist())
    if n > 100:
        size = math.ceil(n / 49)
        for start in range(0, n, size):
            bucket, own = value[start : start + size], value[keep[(keep >= start) & (keep < start + size)]]
            assert (own.min(), own.max()) == (bucket.min(), bucket.max())


# -------------------------------------------------------------------------------------------------------------- drawing


def test_other_metrics_are_a_section_where_a_run_has_some(tmp_path):
    folder = finished(tmp_path / "run")
    assert "<h2>Other metrics</h2>" not in page.render([read(folder)])
    structure = json.loads((folder / "structure.json").read_text())
    structure["phases"][0]["metrics"]["sign_agreement"] = "stage"
    write_json(folder, structure=structure)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(200, sign_agreement=[0.1] * K)) + "\n")
    assert "<h2>Other metrics</h2>" in page.render([read(folder)])


def drawn_phase(structure, measured=None):
    seconds = measured["phases"][0]["seconds"] if measured else None
    return schedule.make(structure["phases"][0], seconds, (measured or {}).get("device", ""))


def test_the_schedule_of_a_step_by_measured_seconds(tmp_path):
    """Four devices: AuxNet forward 4 x 4 ms, stages 10 + 30 + 20 ms at the same time (the last one has no tail), AuxNet
    backward 4 x 8 ms."""
    found = read(finished(tmp_path))
    drawn = drawn_phase(found.structure, found.measured)
    assert drawn.unit == "s"
    assert drawn.end == pytest.approx(0.016 + 0.06 + 0.032)
    assert drawn.busy == pytest.approx(1 - 0.03 / 4 / drawn.end)
    assert [bar.start for bar in drawn.bars if bar.kind == "stage forward"] == pytest.approx([0.016] * K)
    assert "measured on 4 x cpu" in drawn.note


@pytest.mark.parametrize(
    "method, fields, end",
    [
        ("serial", {}, K * 3),
        ("data_parallel", {}, K * 3),
        ("pipeline", {"pipeline__keep": "activations"}, 3 * 1 + 4 * (1 + 2) + 3 * 2),
        ("pipeline", {"pipeline__keep": "inputs"}, 3 * 1 + 2 * 3 + 2 * (1 + 3) + 3 * 3),
        ("delayed", {}, 1 + 1 + 2),
        ("delayed", {"delayed__variant": "ddg"}, (K - 1) + 1 + 2),
        ("local", {}, 1 + 2 + 2),
        ("coarse_adjoint", {"penalty__aux": 0.0, "aux__task_weight": 0.0, "aux__tail": 0}, 1 + 2 + 2),
    ],
)
def test_schedules_of_other_methods(method, fields, end):
    """Every forward pass takes 1 and every backward pass 2, of tails and classifiers 1 each; as in the drawings of
    `lpjax.methods`."""
    network, config = built(method=method, **fields)
    phase = json.loads(json.dumps(describe(network, config)))["phases"][0]
    lengths = {"stage forward": 1, "recompute forward": 1, "stage backward": 2}
    lengths |= {f"{kind} {way}": 1 for kind in ("tail", "classifier") for way in ("forward", "backward")}
    drawn = schedule.make(phase, [lengths.get(row.get("label"), 0.0) for row in phase["schedule"]])
    assert drawn.end == pytest.approx(end)
    for device in range(config.mesh.stage):
        own = sorted((bar.start, bar.start + bar.length) for bar in drawn.bars if bar.device == device)
        assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(own))


def test_seconds_of_another_cut_are_not_used(tmp_path):
    finished(tmp_path)
    other = json.loads((tmp_path / "seconds.json").read_text()) | {"cuts": [1, 2, 4]}
    write_json(tmp_path, seconds=other)
    found = read(tmp_path)
    assert found.measured is None
    assert any("seconds.json is of another cut" in note for note in found.notes)


# ------------------------------------------------------------------------------------------------------ structure.json


def test_stages_and_pieces_are_those_of_the_network():
    network, config = built(mesh__stage=2, mesh__data=2)
    found = json.loads(json.dumps(describe(network, config)))
    assert (found["mesh"], found["examples"], found["cuts"]) == ([2, 2], 8, list(network.cuts))
    for rows, chains in ((found["stages"], network.stages), (found["aux"], network.aux_net)):
        assert [row["units"] for row in rows] == list(map(units, chains))
        assert [row["parameters"] for row in rows] == list(map(chain_size, chains))
        assert [row["flops"] for row in rows] == list(map(chain_flops, chains))
        assert [tuple(row["in_shape"]) for row in rows] == [chain.in_shape for chain in chains]
        assert [row["out_shape"] for row in rows[:-1]] == [row["in_shape"] for row in rows[1:]]
    tails = [{"tail": sum(map(chain_flops, network.aux_tails[k + 1 :]))} for k in range(3)]
    assert [row["beside"] for row in found["stages"]] == [*tails, {}]


def test_a_schedule_survives_json():
    """Entries, what they wait for and their labels; of their chains the operations are left."""
    network, config = built()
    items = METHODS[config.method].work(network, config)
    rows = from_json(json.loads(json.dumps(describe(network, config)))["phases"][0]["schedule"])
    assert [row.label for row in rows] == [item.label for item in items]
    without = [replace(item, chain=None) if isinstance(item, Work) else item for item in items]
    assert [row.item for row in rows] == without
    assert [row.flops for row in rows] == [item_flops(item) for item in items]


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_one_file_that_asks_for_no_other(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert command.main([str(finished(tmp_path / "run")), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]
    text = out.read_text()
    assert "default-src 'none'" in text
    assert not [
        tag
        for tag in ("<link", "<img", " src=", "@import")
        if tag in text.split("</style>")[0] + text.split("<body>")[1]
    ]


def test_samples_of_text_are_shown_as_they_are(tmp_path):
    folder = finished(tmp_path / "run")
    assert "<h2>Samples</h2>" not in page.render([read(folder)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(eval_line(200) | {"test_prompt": "a<b", "test_sample": " and\n\0&"}) + "\n")
    assert "<td>200</td><td><pre><mark>a&lt;b</mark> and\n\0&amp;</pre></td>" in page.render([read(folder)])


def test_names_cannot_break_the_page(tmp_path):
    run = finished(tmp_path / "<b>&amp;'\"", optimizer={"name": "</script><script>alert(1)</script>"})
    text = page.render([read(run), read(run, "other")])
    assert "<b>" not in text.split("<body>")[1]
    assert "alert(1)</script>" not in text
    assert not [
        held for held in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text) if "<" in held
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "nothing: no such folder: expected the workdir of a run"),
        (["run", "--out=empty"], "--out=empty: expected a file that can be written"),
    ],
)
def test_mistakes_exit_with_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "run", [train_line(1), eval_line(1)])
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lpjax: {message}")
    assert error.count("\n") == 1
