"""The cost model held against steps that `speedup` measured, on the machine where they were.

The model is given what this machine takes for each kind of unit at each batch size, alone on one core, and to copy
memory, and what `speedup` found of its links and of how much slower stages become when devices work at the same time.
From these alone it predicts each method's step; rho is compared with the measured.  Some minutes on one core.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from experiments.harness import markdown
from experiments.harness.experiment import RESULTS, Experiment, Json, Option, Table
from experiments.harness.rows import load
from experiments.predict.here import alone_on_one_core, here, measured_units, memory_bandwidth, predicted, slower
from lpjax.cost.machine import Link, UnitSeconds
from lpjax.errors import BadInput


def contention(predictions: list[Json], stages: int) -> float:
    """By how much longer a stage takes when all work: median over the rows that were taken apart at this K.

    Raises:
      BadInput: There are none.
    """
    found = [max(1.0, row["contention"]) for row in predictions if row["stages"] == stages and "contention" in row]
    if not found:
        raise BadInput(f"no row was taken apart at K = {stages}: --rows of `speedup` must have one with stage programs")
    return statistics.median(found)


def check(name: str, found: Json, units: UnitSeconds, bandwidth: float) -> list[Json]:
    """Rows of a file of `speedup`: rho as it was measured, and by the model."""
    link = Link(**found["link"])

    def seconds(row: Json, factor: float) -> float:
        config = load(found["config"], {**row["fields"], "dry_run": True})
        return predicted(config, here(slower(units, factor), bandwidth / factor, link))

    serial = {row["stages"]: seconds(row, 1.0) for row in found["measured"] if row["row"] == "serial"}
    rows = []
    for row in (row for row in found["measured"] if not row["row"].startswith("serial")):
        rho = serial[row["stages"]] / seconds(row, contention(found["predictions"], row["stages"]))
        actual = row["rho"]["median"]
        told = {"of": name, "row": row["row"], "stages": row["stages"]}
        rows.append({**told, "rho_measured": actual, "rho_model": rho, "error": rho / actual - 1})
    return rows


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON at the end."""
    alone_on_one_core()
    units, bandwidth = measured_units(args.repeats), memory_bandwidth()
    files = map(Path, args.against.split(","))
    rows = [row for path in files for row in check(path.name, json.loads(path.read_text()), units, bandwidth)]
    yield {"memory_bandwidth": bandwidth, "largest_error": max(abs(row["error"]) for row in rows), "rows": rows}


def errors(made: Json) -> str:
    """A line a measured row."""
    shown = [
        [
            row["row"],
            str(row["stages"]),
            f"{row['rho_measured']:.2f}",
            f"{row['rho_model']:.2f}",
            f"{row['error']:+.0%}",
        ]
        for row in made["rows"]
    ]
    return markdown.table(["method", "K", "rho, measured", "by the model", "error"], shown)


EXPERIMENT = Experiment(
    name="scale_check",
    doc=__doc__,
    run=run,
    options=(
        Option("against", str(RESULTS / "speedup.json"), "files of `speedup`, with commas between them"),
        Option("repeats", 5, "measurements of a unit"),
    ),
    out="scale_check",
    show=errors,
    tables={"scale_check": Table(errors, ("scale_check",))},
)
