"""Methods beside backprop on one network: accuracy, seconds, memory and traffic of the same runs.

Each (row, K, seed) is a training run of its own, one after the other, K stages on K devices.  Finished runs are kept,
and killed ones go on, when the command is given again.  Each (row, K) has a dry run too, for what a step costs a device
(of a run in phases, its first).  --diagnose=N compares the stages' gradients with backprop's every N steps.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.accuracy.accuracy import trained
from experiments.harness import markdown
from experiments.harness import runs as harness_runs
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import fields_of
from experiments.harness.runs import Cell, cells, of_config
from lpjax.training.workdir import write_json


def run(
    call: Call, rows: str = "serial;data_parallel;pipeline;ddg;fdg;local;penalty;coarse_tail", stages: str = "2,4",
    seeds: int = 3, target: float = 0.8, diagnose: int = 0, runs: Path = Path("runs/compare"),
) -> Iterator[Json]:  # fmt: skip
    """The JSON after every run."""
    by_row = {row: fields_of(row) for row in rows.split(";")}
    made: Json = {"config": call.config, "fields": call.fields | {"diagnose_every": diagnose}, "by_row": by_row}
    todo = cells(made, by_row, stages, range(seeds), runs)
    costs = {(cell.row, cell.stages): cost(cell) for cell in todo if not cell.seed}
    made["failed"] = [f"the dry run of {row}, K = {K}" for (row, K), found in costs.items() if found is None]
    for content in trained(made, todo, environment={}):
        found = [measures(row, costs[row["row"], row["stages"]] or {}, target) for row in content["rows"]]
        serial = {row["stages"]: row["seconds_per_step"] for row in found if row["row"] == "serial"}
        for row in found:
            base, own = serial.get(row["stages"]), row["seconds_per_step"]
            row["speedup"] = base / own if base and own else None
        yield content | {"rows": found}


def cost(cell: Cell) -> Json | None:
    """What a step costs a device, by a dry run; None where that failed."""
    folder = cell.folder.with_name(f"{cell.row.replace(' ', '_')}-{cell.stages}-cost")
    path = folder / "cost.json"
    if not (path.exists() and of_config(folder, cell.config)):
        if not harness_runs.call("main", [*cell.words, "--config.dry_run=True", f"--workdir={folder}"]):
            return None
        write_json(folder / "config.json", dataclasses.asdict(cell.config))
    return json.loads(path.read_text())


def measures(row: Json, cost: Mapping[str, Any], target: float) -> Json:
    """A row of the JSON, but for its speed against serial."""
    seconds = [run["seconds_per_step"] for run in row["runs"] if run["seconds_per_step"] is not None]
    reached = []
    for run in row["runs"]:
        steps = [step for step, value in run["accuracy"] if value >= target]
        reached += [steps[0] * run["seconds_per_step"]] if steps and run["seconds_per_step"] is not None else []
    return row | {
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "seconds_per_step_min": min(seconds, default=None),
        "seconds_per_step_max": max(seconds, default=None),
        "target": target,
        "seconds_to_target": statistics.mean(reached) if len(reached) == row["n"] else None,
        **{name: cost.get(name) for name in ("held_bytes", "temporary_bytes")},
        "exchanged_bytes": cost.get("exchanged_bytes_total"),
        "exchanged_bytes_by_kind": cost.get("exchanged_bytes"),
    }


def in_full(made: Json) -> str:
    """A line a row and number of stages."""
    shown = []
    for row in made["rows"]:
        held = None if row["held_bytes"] is None else (row["held_bytes"] + row["temporary_bytes"]) / 1e6
        sent = None if row["exchanged_bytes"] is None else row["exchanged_bytes"] / 1e6
        values = row["seconds_per_step"], row["speedup"], row["seconds_to_target"], held, sent
        told = [markdown.shown(*pair) for pair in zip(values, (".3f", ".2f", ".0f", ".1f", ".2f"), strict=True)]
        shown.append([str(row["stages"]), row["row"], markdown.percent(row), *told])
    target = f"s to {100 * made['rows'][0]['target']:g} %"
    cost = ["s/step", "speed against serial", target, "MB a device", "MB sent a step"]
    return markdown.table(["K", "method", "test accuracy, %, mean ± std (n)", *cost], shown)


TABLES = {"compare": Table(in_full, ("compare",))}
EXPERIMENT = Experiment(run, config="configs/fashion_mnist_small.py", out="compare", show=in_full, tables=TABLES)
