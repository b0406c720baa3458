"""Levers: what is compared with what, and the table."""

import json

import pytest

from experiments import levers


def test_the_table():
    ratio = {"median": 0.9, "min": 0.85, "max": 1.0}
    row = {"row": "large pages", "environment": {"A": "b=1"}, "over_base": ratio}
    assert levers.markdown([row]).splitlines()[-1] == "| large pages | `A=b=1` | 0.90 (0.85 .. 1.00) |"


@pytest.mark.slow
def test_levers_are_timed_beside_one_another(monkeypatch, tmp_path):
    unrolled = levers.Lever({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, unroll=2)
    monkeypatch.setattr(levers, "LEVERS", {levers.BASE: levers.Lever(), "unrolled": unrolled})
    fields = ["--config.model.depth=14", "--config.model.width=4", "--config.batch_size=16"]
    out = tmp_path / "levers.json"
    assert levers.main(["--config=configs/digits.py", "--rounds=2", "--steps=1", f"--out={out}", *fields]) == 0
    result = json.loads(out.read_text())
    assert [row["row"] for row in result["rows"]] == [levers.BASE, "unrolled"]
    assert result["rows"][0]["over_base"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert result["rows"][1]["over_base"]["median"] > 0


@pytest.mark.slow
def test_a_lever_that_cannot_be_set_is_told(monkeypatch, tmp_path, capsys):
    broken = levers.Lever({"XLA_FLAGS": "--xla_no_such_flag=1"})
    monkeypatch.setattr(levers, "LEVERS", {levers.BASE: levers.Lever(), "broken": broken})
    fields = ["--config.model.depth=8", "--config.model.width=4", "--config.batch_size=16"]
    out = tmp_path / "levers.json"
    assert levers.main(["--config=configs/digits.py", "--rounds=1", "--steps=1", f"--out={out}", *fields]) == 1
    assert [row["row"] for row in json.loads(out.read_text())["rows"]] == [levers.BASE]
    assert "broken" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_base_there_is_nothing_to_compare_with(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(levers, "LEVERS", {levers.BASE: levers.Lever({"XLA_FLAGS": "--xla_no_such_flag=1"})})
    out = tmp_path / "levers.json"
    assert levers.main(["--config=configs/digits.py", f"--out={out}"]) == 1
    assert levers.BASE in capsys.readouterr().err
    assert not out.exists()
