"""Methods beside backprop on one network: accuracy, seconds, memory and traffic of the same runs.

Each (row, K, seed) is a training run of its own, one after the other, K stages on K devices.  Finished runs are kept,
and killed ones go on, when the command is given again.  Each (row, K) has a dry run too, for what a step costs a device
(of a run in phases, its first).  --diagnose=N compares the stages' gradients with backprop's every N steps.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.harness import markdown, stats
from experiments.harness.experiment import Experiment, Json, Option, Table
from experiments.harness.rows import fields_of, meaning
from experiments.harness.runs import Cell, call, cells, of_config, sweep
from lpjax.methods import METHODS
from lpjax.training.writers import write_json

Key = tuple[str, int]
"""Row and number of stages."""


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON after every run."""
    keys = [(row, K) for K in map(int, args.stages.split(",")) for row in args.rows.split(";")]
    fields = {}
    for row, K in keys:
        own = args.fields | fields_of(row) | {"diagnose_every": args.diagnose}
        several = args.devices is not None and METHODS[own["method"]].devices != "one"
        fields[row, K] = own | ({"mesh.stage": int(args.devices)} if several else {})
    todo = cells(args.config, fields, range(args.seeds), args.runs)
    costs = {(cell.row, cell.stages): cost(cell) for cell in todo[: len(keys)]}
    failed = [f"the dry run of {row}, K = {K}" for (row, K), found in costs.items() if found is None]
    runs: dict[Key, dict[int, Json]] = {key: {} for key in keys}
    for cell, found in sweep(todo, 1):
        if found is None:
            failed.append(cell.name)
        else:
            runs[cell.row, cell.stages][cell.seed] = found
        rows = [summarise(key, list(runs[key].values()), costs[key], args.target) for key in keys]
        yield {"config": args.config, "overrides": args.fields, "failed": failed, "rows": with_speedup(rows)}


def cost(cell: Cell) -> Json | None:
    """What a step costs a device, by a dry run; None where that failed."""
    folder = cell.folder.with_name(f"{cell.row.replace(' ', '_')}-{cell.stages}-cost")
    path = folder / "cost.json"
    if not (path.exists() and of_config(folder, cell.config)):
        if not call("main", [*cell.words(), "--config.dry_run=True", f"--workdir={folder}"]):
            return None
        write_json(folder / "config.json", dataclasses.asdict(cell.config))
    return json.loads(path.read_text())


def seconds_to(target: float, run: Mapping[str, Any]) -> float | None:
    """Training seconds of a run to its first test of at least `target`; None if there is none."""
    steps = [step for step, value in run["accuracy"] if value >= target]
    return steps[0] * run["seconds_per_step"] if steps and run["seconds_per_step"] is not None else None


def summarise(key: Key, runs: list[Json], cost: Mapping[str, Any] | None, target: float) -> Json:
    """A row of the JSON, but for its speed against serial."""
    seconds = [run["seconds_per_step"] for run in runs if run["seconds_per_step"] is not None]
    reached = [seconds_to(target, run) for run in runs]
    found, cost = stats.summary(*key, runs), cost or {}
    return {
        **found,
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "seconds_per_step_min": min(seconds, default=None),
        "seconds_per_step_max": max(seconds, default=None),
        "target": target,
        "seconds_to_target": statistics.mean(filter(None, reached)) if runs and None not in reached else None,
        "held_bytes": cost.get("held_bytes"),
        "temporary_bytes": cost.get("temporary_bytes"),
        "exchanged_bytes": cost.get("exchanged_bytes_total"),
        "exchanged_bytes_by_kind": cost.get("exchanged_bytes"),
    }


def with_speedup(rows: list[Json]) -> list[Json]:
    """The rows with serial's seconds per step over their own, of the same K."""
    serial = {row["stages"]: row["seconds_per_step"] for row in rows if row["row"] == "serial"}

    def speedup(row: Json) -> float | None:
        base, own = serial.get(row["stages"]), row["seconds_per_step"]
        return base / own if base and own else None

    return [row | {"speedup": speedup(row)} for row in rows]


# -------------------------------------------------------------------------------------------------- tables and pictures


def in_full(made: Json) -> str:
    """A line a row and number of stages."""
    rows, shown = made["rows"], []
    for row in rows:
        held = None if row["held_bytes"] is None else (row["held_bytes"] + row["temporary_bytes"]) / 1e6
        sent = None if row["exchanged_bytes"] is None else row["exchanged_bytes"] / 1e6
        figures = zip(
            (row["seconds_per_step"], row["speedup"], row["seconds_to_target"], held, sent),
            (".3f", ".2f", ".0f", ".1f", ".2f"),
            strict=True,
        )
        told = [markdown.shown(value, form) for value, form in figures]
        shown.append([str(row["stages"]), row["row"], markdown.percent(row), *told])
    target = f"s to {100 * rows[0]['target']:g} %"
    cost = ["s/step", "speed against serial", target, "MB a device", "MB sent a step"]
    return markdown.table(["K", "method", "test accuracy, %, mean ± std (n)", *cost], shown)


def price(made: Json) -> str:
    """What a cheaper AuxNet, tail or exchange costs in accuracy."""
    rows = {row["row"]: row for row in made["rows"]}
    base = rows["coarse_tail"]["accuracy_mean"]
    shown = [
        [
            name,
            meaning(name),
            markdown.percent(row),
            f"{100 * (row['accuracy_mean'] - base):+.2f}",
            f"{row['exchanged_bytes'] / 1e6:.2f}",
        ]
        for name, row in rows.items()
    ]
    heading = ["", "", "test accuracy, %, mean ± std (n)", "minus coarse_tail, points", "MB sent a step"]
    return markdown.table(heading, shown)


EXPERIMENT = Experiment(
    name="compare",
    doc=__doc__,
    run=run,
    options=(
        Option("rows", "serial;data_parallel;pipeline;ddg;fdg;local;penalty;coarse_tail", "with ; between them"),
        Option("stages", "2,4", "numbers of stages K"),
        Option("seeds", 3, "how many"),
        Option("target", 0.8, "test accuracy to which the time is told"),
        Option("diagnose", 0, "steps between comparisons with backprop's gradient"),
        Option("devices", None, "along 'stage', for methods that use several; K if not given"),
        Option("runs", Path("runs/compare"), "folder of the runs' workdirs"),
    ),
    config="configs/fashion_mnist_small.py",
    out="compare",
    show=in_full,
    tables={"compare": Table(in_full, ("compare",)), "aux": Table(price, ("price",))},
)
