"""The cost model held against steps that `speedup` measured, on the machine where they were.

The model is given what this machine takes for each kind of unit at each batch size, alone on one core, and to copy
memory, and what `speedup` found of its links and of how much slower stages become when devices work at the same time.
From these alone it predicts each method's step; rho is compared with the measured.  Some minutes on one core.
"""

import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness import markdown
from experiments.harness.experiment import RESULTS, Call, Experiment, Json, Table
from experiments.harness.rows import load
from experiments.speed.speedup import INTERLEAVED
from lpjax.config.schema import Config
from lpjax.cost.machine import Link, Machine, UnitSeconds
from lpjax.cost.model import step_seconds
from lpjax.cost.timing import UnitTimer, stopwatch
from lpjax.errors import BadInput
from lpjax.training import run as runs

ALONE = {"NPROC": "1"} | INTERLEAVED  # the environment that units are measured in


def alone_on_one_core() -> None:
    """Start `python -m experiments` again in the environment `ALONE` where it is in another one."""
    if any(os.environ.get(name) != value for name, value in ALONE.items()):
        os.execve(sys.executable, [sys.executable, "-m", "experiments", *sys.argv[1:]], os.environ | ALONE)
    jax.config.update("jax_num_cpu_devices", 16)  # of which one works: meshes of the rows are made, and not used


def measured_units(repeats: int) -> UnitSeconds:
    """Seconds of units as measured here, all beside the same first one."""
    timer = UnitTimer(repeats)

    def seconds(*unit: Any) -> tuple[float, float]:
        taken = timer(*unit)
        return taken.forward, max(0.0, taken.both - taken.forward)

    return seconds


def memory_bandwidth() -> float:
    """Bytes a second that are read or written in an update of 4 MiB, about a stage's parameters."""
    x = jnp.zeros(1 << 20)
    return 2 * x.nbytes / statistics.median(stopwatch(jax.jit(lambda x: 2 * x + 1), x))


def here(units: UnitSeconds, bandwidth: float, link: Link, slower: float = 1.0) -> Machine:
    """Devices like this machine's, each slower by a factor."""
    same: Any = {"devices_per_node": 64, "inside": link, "between": link, "launch": 0.0, "start": 0.0}

    def seconds(*unit: Any) -> tuple[float, float]:
        forward, backward = units(*unit)
        return slower * forward, slower * backward

    return Machine("here", seconds, memory_bandwidth=bandwidth / slower, **same)


def predicted(config: Config, machine: Machine) -> float:
    """Seconds of a step by the model."""
    run = runs.prepare(config)
    return step_seconds(run.network, run.config, machine).total


def contention(predictions: list[Json], stages: int) -> float:
    """By how much longer a stage takes when all work: median over the rows that were taken apart at this K."""
    found = [max(1.0, row["contention"]) for row in predictions if row["stages"] == stages and "contention" in row]
    if not found:
        raise BadInput(f"no row was taken apart at K = {stages}: --rows of `speedup` must have one with stage programs")
    return statistics.median(found)


def check(name: str, found: Json, units: UnitSeconds, bandwidth: float) -> Iterator[Json]:
    """Rows of a file of `speedup`: rho as it was measured, and by the model."""
    link, serial = Link(**found["link"]), dict[int, float]()
    for row in sorted(found["measured"], key=lambda row: row["row"] != "serial"):
        slower = 1.0 if row["row"] == "serial" else contention(found["predictions"], row["stages"])
        config = load(found["config"], {**row["fields"], "dry_run": True})
        seconds = predicted(config, here(units, bandwidth, link, slower))
        serial.setdefault(row["stages"], seconds)
        actual, rho = row["rho"]["median"], serial[row["stages"]] / seconds
        if not row["row"].startswith("serial"):
            told = {"of": name, "row": row["row"], "stages": row["stages"]}
            yield {**told, "rho_measured": actual, "rho_model": rho, "error": rho / actual - 1}


def run(call: Call, against: str = str(RESULTS / "speedup.json"), repeats: int = 5) -> Iterator[Json]:
    """The JSON at the end."""
    alone_on_one_core()
    units, bandwidth = measured_units(repeats), memory_bandwidth()
    files = map(Path, against.split(","))
    rows = [row for path in files for row in check(path.name, json.loads(path.read_text()), units, bandwidth)]
    yield {"memory_bandwidth": bandwidth, "largest_error": max(abs(row["error"]) for row in rows), "rows": rows}


def errors(made: Json) -> str:
    """A line a measured row."""
    shown = []
    for row in made["rows"]:
        rho = [f"{row[name]:.2f}" for name in ("rho_measured", "rho_model")]
        shown.append([row["row"], str(row["stages"]), *rho, f"{row['error']:+.0%}"])
    return markdown.table(["method", "K", "rho, measured", "by the model", "error"], shown)


EXPERIMENT = Experiment(run, out="scale_check", show=errors, tables={"scale_check": Table(errors, ("scale_check",))})
