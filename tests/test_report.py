"""The page of runs: what is read of their folders, what is drawn, and what is said of what is not."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_folders import K, described, eval_line, finished, train_line, write_json, write_lines

from lpjax.nn.count import chain_flops, unit_flops
from lpjax.report import __main__ as command
from lpjax.report import charts, curves, drawings, page, record, schedule
from lpjax.report.lines import extremes
from lpjax.report.record import differences, flat, read
from lpjax.training.summary import describe
from tests.helpers import built


def all_charts(records):
    made = [curves.learning, curves.stages, curves.constraints, curves.gradients]
    made += [drawings.cuts, drawings.schedules, drawings.times]
    return {chart.key: chart for make in made for chart in make(records)} | {"wait": curves.waiting(records)}


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "tail", ['{"kind": "train", "step": 4, "acc', '{"kind": "train", "step": 4, "accuracy": 1.0}', "\0\0"]
)
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
    write_lines(tmp_path, [train_line(1), train_line(2, task_loss=math.nan), train_line(3)])
    found = read(tmp_path)
    assert np.isnan(found.lines["task_loss"][0].value).tolist() == [False, True, False]
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


def test_lists_of_changing_length(tmp_path):
    write_lines(
        tmp_path, [train_line(1), train_line(2, relative_violation=[0.5]), train_line(3, relative_violation=[])]
    )
    first, second, _ = read(tmp_path).lines["relative_violation"]
    assert np.isfinite(first.value).tolist() == [True, True, False]
    assert np.isfinite(second.value).tolist() == [True, False, False]


def test_recoveries_are_said(tmp_path):
    write_lines(tmp_path, [train_line(1), {"kind": "recovery", "step": 1, "epoch": 0.1, "factor": 0.5}, train_line(2)])
    found = read(tmp_path)
    assert found.recoveries == ((1, 0.5),)
    assert "after step 1 learning rates times 0.5" in page.render([found])


@pytest.mark.parametrize("missing", ["config", "result", "structure", "seconds", "eval lines", "everything", "figures"])
def test_a_run_with_missing_pieces(tmp_path, missing):
    finished(tmp_path)
    if missing == "eval lines":
        write_lines(tmp_path, [train_line(1), train_line(2)])
    elif missing in ("everything", "figures"):
        write_lines(tmp_path, [train_line(1)] if missing == "everything" else [])
        for path in tmp_path.glob("*.json"):
            path.unlink()
    else:
        (tmp_path / f"{missing}.json").unlink()
    found = read(tmp_path)
    text = page.render([found])
    if missing in ("config", "result", "structure"):
        assert f"no {missing}.json" in found.notes
        assert f"no {missing}.json" in text
    made = all_charts([found])
    assert (made["paths"].figure is None) == (missing in ("eval lines", "everything", "figures"))
    assert (found.ended == "finished") == (missing not in ("result", "everything", "figures", "eval lines"))


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"stages": 1}', '{"stages": []}', "\0"])
def test_damaged_files_are_said_and_left_out(tmp_path, content):
    finished(tmp_path)
    write_json(tmp_path, structure=content, config="{", result="[1]")
    found = read(tmp_path)
    assert (found.structure, found.config, found.result, found.measured) == (None,) * 4
    assert [note.split(" cannot")[0] for note in found.notes if "cannot" in note] == [
        "config.json",
        "result.json",
        "structure.json",
    ]
    page.render([found])


def test_a_run_that_went_on_after_its_result(tmp_path):
    finished(tmp_path, steps=10)
    write_lines(tmp_path, [train_line(step) for step in range(1, 21)])
    assert read(tmp_path).ended == "finished at step 10; since then going on, or killed"


def test_wall_time_without_seconds(tmp_path):
    """Of runs that did not record it: by the median step, and it is said; nothing without that."""
    finished(tmp_path)
    write_lines(tmp_path, [{k: v for k, v in train_line(step).items() if k != "seconds"} for step in (1, 10)])
    found = read(tmp_path)
    assert found.lines["accuracy"][0].seconds == pytest.approx([0.1, 1.0])
    assert any("steps times the median" in note for note in found.notes)
    (tmp_path / "result.json").unlink()
    found = read(tmp_path)
    assert all_charts([found])["accuracy-time"].figure is None
    assert any("not drawn over wall time" in note for note in found.notes)


def test_step_seconds_without_a_result(tmp_path):
    found = read(write_lines(tmp_path, [train_line(step) for step in range(1, 12, 2)]))
    assert found.step_seconds == pytest.approx(0.1)
    assert found.data_seconds == pytest.approx(0.002)


# ------------------------------------------------------------------------------------------------------------ thinning


@pytest.mark.parametrize("n", [1, 99, 100, 101, 1234, 10_007])
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


def test_fewer_points_pass_over_what_is_no_number():
    value = np.full(1000, np.nan)
    value[::100], value[5::100] = np.arange(1.0, 11.0), -np.arange(1.0, 11.0)
    keep = extremes(value, 50)
    assert set(np.flatnonzero(np.isfinite(value))) <= set(keep)


def test_the_page_says_that_lines_have_fewer_points(tmp_path):
    write_lines(tmp_path, [train_line(step) for step in range(1, 301)])
    found = read(tmp_path, points=100)
    text = " ".join(all_charts([found])["accuracy-steps"].text)
    assert f"of up to 300 points a line {len(found.lines['accuracy'][0].value)} are drawn" in text
    assert "ewer points" not in " ".join(all_charts([read(tmp_path)])["accuracy-steps"].text)


@pytest.mark.slow
def test_twenty_long_runs_take_seconds(tmp_path):
    """20 runs of 100,000 lines; one file under twenty names."""
    first = write_lines(tmp_path / "0", [train_line(step) for step in range(1, 100_001)])
    folders = [first, *(tmp_path / str(i) for i in range(1, 20))]
    for folder in folders[1:]:
        folder.mkdir()
        os.link(first / "metrics.jsonl", folder / "metrics.jsonl")
    start = time.perf_counter()
    arguments = [sys.executable, "-m", "lpjax.report", *folders, f"--out={tmp_path / 'page.html'}"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 60, "about ten on one core"
    assert (tmp_path / "page.html").stat().st_size < 20e6


# -------------------------------------------------------------------------------------------------------------- drawing


def test_lines_have_colour_dash_and_marker_of_their_own(tmp_path):
    """By stage in one run; by run and stage in several, where no two runs share colour and marker."""
    records = [read(finished(tmp_path / str(i))) for i in range(3)]
    one = curves.constraints(records[:1])[0].figure.data
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in one}) == len(one) == K - 1
    assert len({t.line.dash for t in one}) == K - 1
    several = [t for t in curves.constraints(records)[0].figure.data if t.meta]
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in several}) == len(several) == 3 * (K - 1)
    assert len({(charts.colour(i), charts.marker(i)) for i in range(20)}) == 20
    assert len({charts.marker(i) for i in range(20)}) == 20


def test_of_many_lines_each_runs_worst_is_shown(tmp_path):
    records = [read(finished(tmp_path / str(i), steps=20)) for i in range(9)]
    violation = curves.constraints(records)[0]
    shown = [t for t in violation.figure.data if t.meta and t.visible is True]
    assert [t.meta["run"] for t in shown] == list(range(9))
    assert all((t.y == records[0].lines["relative_violation"][0].value.astype(np.float32)).all() for t in shown)
    assert "each run's largest at the end" in " ".join(violation.text)


def test_figures_that_were_not_recorded_are_said(tmp_path):
    full, bare = read(finished(tmp_path / "full")), read(write_lines(tmp_path / "bare", [train_line(1)]))
    cosine = curves.gradients([full, bare])[0]
    assert cosine.text == ("Not recorded by bare. Recorded with diagnose_every=N.",)
    alone = curves.gradients([bare])[0]
    assert alone.figure is None
    assert "Nothing to draw" in page.render([bare])


def test_other_metrics_are_a_section_where_a_run_has_some(tmp_path):
    folder = finished(tmp_path / "run")
    assert "<h2>Other metrics</h2>" not in page.render([read(folder)])
    structure = json.loads((folder / "structure.json").read_text())
    structure["phases"][0]["metrics"]["sign_agreement"] = "stage"
    write_json(folder, structure=structure)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(200, sign_agreement=[0.1] * K)) + "\n")
    assert "<h2>Other metrics</h2>" in page.render([read(folder)])


def test_which_stage_learns(tmp_path):
    """The worst stage of each run where there are many lines; what a method does not record is said."""
    own = {"stage_accuracy": [0.9, 0.8, 0.7, 0.6], "coarse_error": [0.0, 0.4, 0.2, 0.0]}
    lines = [train_line(1, **own), train_line(2, **own)]
    real = read(write_lines(tmp_path / "real", lines))
    loss, accuracy, norm, error = curves.stages([real])
    assert [t.name for t in loss.figure.data] == [f"stage {k}" for k in range(4)]
    assert [t.y[-1] for t in loss.figure.data] == pytest.approx(lines[1]["stage_loss"])
    assert [t.y[-1] for t in accuracy.figure.data] == pytest.approx(own["stage_accuracy"])
    assert [t.y[-1] for t in norm.figure.data] == pytest.approx(lines[1]["gradient_norm"])
    assert [t.y[-1] for t in error.figure.data] == pytest.approx(own["coarse_error"])
    other = read(write_lines(tmp_path / "other", [train_line(1)]))
    assert curves.stages([other])[3].text == (
        "Not recorded by other. Methods without tails beside their stages have none.",
    )
    shown = [t for t in curves.stages([real] * 7)[1].figure.data if t.meta and t.visible is True]
    assert [t.y[-1] for t in shown] == pytest.approx([0.6] * 7), "the least accurate stage"


def test_without_an_aux_net_path_there_is_nothing_to_compare(tmp_path):
    def run(name, *left_out):
        lines = [train_line(1), {key: value for key, value in eval_line(1).items() if key not in left_out}]
        return read(write_lines(tmp_path / name, lines))

    serial, head = run("serial", "aux_path_accuracy", "aux_head_accuracy"), run("head", "aux_path_accuracy")
    assert all_charts([serial])["paths"].figure is None
    assert [t.legendgroup for t in all_charts([head])["paths"].figure.data] == ["composed network", "AuxNet's head"]
    assert "serial: composed network" in [t.name for t in all_charts([serial, head])["paths"].figure.data]


def test_zeros_are_said(tmp_path):
    """As of the multipliers of a policy that has none."""
    runs = [write_lines(tmp_path / str(m), [train_line(1, multiplier_norm=[0.0, m])]) for m in (0.0, 1.0)]
    zero, other = (curves.constraints([read(run)])[1] for run in runs)
    assert zero.text == ("Zero throughout.",)
    assert zero.figure.layout.yaxis.rangemode == "nonnegative"
    assert "Zero throughout." not in other.text
    assert other.figure.layout.yaxis.rangemode is None


def test_colours_stand_out():
    def luminance(colour):
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    backgrounds = re.findall(r"--paper: (#[0-9a-f]{6})", Path(page.__file__).with_name("page.css").read_text())
    assert len(backgrounds) == 2, "a light and a dark one"
    for colour, background in itertools.product(charts.COLOURS, backgrounds):
        low, high = sorted([luminance(colour), luminance(background)])
        assert (high + 0.05) / (low + 0.05) >= 3, (colour, background)


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


def test_the_schedule_of_a_step_by_operations():
    """Says so; the longest stage with its tail decides."""
    network, config = built()
    drawn = drawn_phase(json.loads(described("layer_parallel")))
    assert (drawn.unit, "floating-point" in drawn.note) == ("GFLOP", True)
    scale = config.batch_size / 1e9
    first = unit_flops(network.chain.units[0], network.chain.in_shape)
    own = [3 * chain_flops(stage) - (first if k == 0 else 0) for k, stage in enumerate(network.stages)]
    longest = max(a + 3 * sum(map(chain_flops, network.aux_tails[k + 1 :])) for k, a in enumerate(own))
    forward = sum(map(chain_flops, network.aux_net)) / K
    spared = unit_flops(network.aux_net[0].units[0], network.chain.in_shape) / K
    assert drawn.end == pytest.approx(scale * (longest + 3 * forward - spared))
    back = [min(bar.start for bar in drawn.bars if (bar.device, bar.kind) == (d, "aux backward")) for d in range(K)]
    assert back == pytest.approx([scale * (longest + forward)] * K), "all wait for the longest stage"


@pytest.mark.parametrize(
    "method, fields, end",
    [
        ("serial", {}, K * 3),
        ("data_parallel", {}, K * 3),
        ("pipeline", {}, 6 * 1 + 7 * (1 + 2)),
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


def test_devices_with_several_stages_take_one_after_the_other():
    network, config = built(mesh__stage=2)
    drawn = drawn_phase(json.loads(json.dumps(describe(network, config))))
    forward = [bar for bar in drawn.bars if bar.kind == "stage forward"]
    assert [(bar.device, bar.what) for bar in forward] == [(k // 2, f"stage {k}: stage forward") for k in range(K)]


def test_seconds_of_another_cut_are_not_used(tmp_path):
    finished(tmp_path)
    other = json.loads((tmp_path / "seconds.json").read_text()) | {"cuts": [1, 2, 4]}
    write_json(tmp_path, seconds=other)
    found = read(tmp_path)
    assert found.measured is None
    assert any("seconds.json is of another cut" in note for note in found.notes)


def test_the_cut_says_what_its_pieces_are(tmp_path):
    """Stages and AuxNet by shapes and units; of coarse tails only the operations are known."""
    found = read(finished(tmp_path))
    drawn = drawings.cuts([found])[0].figure.data
    assert [list(trace.y) for trace in drawn] == [["stages", "tails", "AuxNet"]] * K
    first = dict(zip(drawn[0].y, drawn[0].hovertext, strict=True))
    assert first["stages"] == "<br>8x8x1 → 8x8x4<br>conv3-4, standardise"
    assert (first["tails"], first["AuxNet"].count("<br>")) == ("", 2)
    stages, tails, _ = zip(*(trace.x for trace in drawn), strict=True)
    assert stages == pytest.approx([stage["flops"] / 1e6 for stage in found.structure["stages"]])
    assert tails == pytest.approx([stage["beside"].get("tail", 0.0) / 1e6 for stage in found.structure["stages"]])


def test_runs_with_one_cut_are_drawn_once(tmp_path):
    records = [read(finished(tmp_path / name, method=method)) for name, method in (("a", "serial"), ("b", "serial"))]
    assert [chart.title for chart in drawings.cuts(records)] == [
        "The cut by operations of a forward pass: a, b",
        "The cut by parameters: a, b",
    ]


# ----------------------------------------------------------------------------------------------------------- comparing


def test_differences_of_configurations():
    one = flat({"a": 1, "b": {"c": [1, 2], "d": None}, "e": {}})
    other = flat({"a": 1, "b": {"c": [1, 3], "d": None}, "f": "x"})
    assert one == {"a": "1", "b.c": "[1, 2]", "b.d": "null", "e": "{}"}
    assert differences([one, other]) == ["b.c", "e", "f"]
    assert differences([one, None, one]) == [], "a run without a table is not compared"


def test_differences_are_on_the_page(tmp_path):
    records = [
        read(finished(tmp_path / str(i), optimizer={"learning_rate": rate})) for i, rate in enumerate((0.1, 0.3))
    ]
    text = page.render(records)
    assert "1 settings differ" in text
    assert "<mark>0.3</mark>" in text
    assert "No differences" in page.render([records[0], records[0]])


def test_names_are_the_shortest_that_differ(tmp_path):
    folders = [tmp_path / "a" / "digits", tmp_path / "b" / "digits"]
    assert record.names_of(folders) == ["a/digits", "b/digits"]
    assert record.names_of(folders[:1]) == ["digits"]


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
        (["empty"], "empty: no metrics.jsonl in it: expected the workdir of a run"),
        (["run", "nothing"], "nothing: no such folder"),
        (["run", "--out=nowhere/page.html"], "--out=nowhere/page.html: expected a file that can be written"),
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


@pytest.mark.parametrize("arguments", [[], ["run", "--nonsense"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m lpjax.report" in capsys.readouterr().err


def test_packages_that_are_missing_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpjax.report.page", None)
    monkeypatch.delattr("lpjax.report.page")
    assert command.main([str(write_lines(tmp_path, [train_line(1)]))]) == 2
    assert "pip install 'lpjax[report]'" in capsys.readouterr().err
