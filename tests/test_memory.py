"""The memory table: what a device holds by method and K."""

import json

import pytest

from experiments import memory


def row(name, stages, held, temporary):
    return {"row": name, "stages": stages, "held_bytes": held * 1e6, "temporary_bytes": temporary * 1e6}


def test_the_table():
    rows = [row("serial", 1, 2, 18), row("local", 2, 1.25, 9), row("local", 4, 1, 4)]
    assert memory.markdown(rows).splitlines() == [
        "| | K = 2 | K = 4 |",
        "|---|---|---|",
        "| serial | 2.0 + 18 (1.00) | 2.0 + 18 (1.00) |",
        "| local | 1.2 + 9 (0.51) | 1.0 + 4 (0.25) |",
        "| 1/K | 0.50 | 0.25 |",
    ]


@pytest.mark.slow
def test_stages_hold_less_than_the_whole(tmp_path):
    out = tmp_path / "memory.json"
    fields = ["--config.model.depth=20", "--config.model.width=8", "--config.batch_size=32"]
    argv = ["--config=configs/digits.py", "--stages=2,4", "--methods=local", f"--out={out}", *fields]
    memory.main(argv)
    rows = {(r["row"], r["stages"]): r for r in json.loads(out.read_text())["rows"]}
    assert list(rows) == [("serial", 1), ("local", 2), ("local", 4)]
    needed = [r["temporary_bytes"] for r in rows.values()]
    assert needed[0] > needed[1] > needed[2] > 0
