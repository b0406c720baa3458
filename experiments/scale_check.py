"""The cost model of `lpjax.cost.model` held against steps that were measured, on the machine where they were.

    python -m experiments.scale_check [--against=experiments/results/speedup.json,..] [--repeats=5]
        [--out=experiments/results/scale_check.json]

The model is given what this machine's devices take for each kind of unit at each batch size (`timing.UnitTimer`, alone
on one core), to copy memory, and what `experiments.speedup` found of its links and of how much slower stages become
when devices work at the same time.  From these alone it predicts each method's step; rho is compared with the measured.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.compare import load
from experiments.processes import IN_TURNS
from experiments.provenance import provenance
from lpjax.config.schema import Config
from lpjax.cost.machine import Link, Machine, UnitSeconds
from lpjax.cost.model import step_seconds
from lpjax.cost.timing import UnitTimer, stopwatch
from lpjax.nn.chain import Shape, UnitLike
from lpjax.training import run as runs
from lpjax.training.writers import write_json

ALONE = {"NPROC": "1", **(IN_TURNS if sys.platform == "linux" else {})}
"""The environment that units are measured in."""


def alone_on_one_core(module: str) -> None:
    """Starts this script again in the environment `ALONE` where it is in another one."""
    if any(os.environ.get(name) != value for name, value in ALONE.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | ALONE)
    jax.config.update("jax_num_cpu_devices", 8)  # of which one works: meshes of the rows are made, and not used


def measured_units(repeats: int) -> UnitSeconds:
    """Seconds of units as measured here, all beside the same first one."""
    timer = UnitTimer(repeats)

    def seconds(unit: UnitLike, in_shape: Shape, examples: int) -> tuple[float, float]:
        taken = timer(unit, in_shape, examples)
        return taken.forward, max(0.0, taken.both - taken.forward)

    return seconds


def memory_bandwidth() -> float:
    """Bytes a second that are read or written in an update of 64 MiB."""
    x = jnp.zeros(1 << 24)
    return 2 * x.nbytes / statistics.median(stopwatch(jax.jit(lambda x: 2 * x + 1), x))


def slower(units: UnitSeconds, factor: float) -> UnitSeconds:
    """Units on devices that hinder each other."""

    def seconds(unit: UnitLike, in_shape: Shape, examples: int) -> tuple[float, float]:
        forward, backward = units(unit, in_shape, examples)
        return factor * forward, factor * backward

    return seconds


def here(units: UnitSeconds, bandwidth: float, link: Link) -> Machine:
    """Devices like this machine's."""
    return Machine(
        "here", units, memory_bandwidth=bandwidth, devices_per_node=64, inside=link, between=link, launch=0.0, start=0.0
    )


def predicted(config: Config, machine: Machine) -> float:
    """Seconds of a step by the model."""
    run = runs.prepare(config)
    return step_seconds(run.network, run.config, machine).total


def contention(predictions: list[dict[str, Any]], stages: int) -> float:
    """By how much longer a stage takes when all work: median over the rows that were taken apart at this K."""
    found = [max(1.0, row["contention"]) for row in predictions if row["stages"] == stages and "contention" in row]
    if not found:
        raise SystemExit(f"no row was taken apart at K = {stages}: --methods must have one with `Method.stage_program`")
    return statistics.median(found)


def check(path: Path, units: UnitSeconds, bandwidth: float) -> list[dict[str, Any]]:
    """Rows of a file of `experiments.speedup`: rho as it was measured, and by the model."""
    found = json.loads(path.read_text())
    link = Link(**found["link"])

    def seconds(row: dict[str, Any], factor: float) -> float:
        fields = {n: tuple(v) if isinstance(v, list) else v for n, v in row["fields"].items()}
        config = load(Path(found["config"]), {**fields, "dry_run": True})
        return predicted(config, here(slower(units, factor), bandwidth / factor, link))

    measured = [row for row in found["measured"] if not row["row"].startswith("serial")]
    serial = {row["stages"]: seconds(row, 1.0) for row in found["measured"] if row["row"] == "serial"}
    rows = []
    for row in measured:
        rho = serial[row["stages"]] / seconds(row, contention(found["predictions"], row["stages"]))
        actual = row["rho"]["median"]
        rows.append(
            {
                "of": path.name,
                "row": row["row"],
                "stages": row["stages"],
                "rho_measured": actual,
                "rho_model": rho,
                "error": rho / actual - 1,
            }
        )
        print(f"{path.name} {row['row']}, K = {row['stages']}: {actual:.2f}, model {rho:.2f} ({rho / actual - 1:+.0%})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="experiments/results/speedup.json")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/scale_check.json"))
    args = parser.parse_args()
    alone_on_one_core("experiments.scale_check")
    units, bandwidth = measured_units(args.repeats), memory_bandwidth()
    rows = [row for path in args.against.split(",") for row in check(Path(path), units, bandwidth)]
    write_json(
        args.out,
        {
            **provenance("experiments.scale_check", sys.argv[1:]),
            "memory_bandwidth": bandwidth,
            "largest_error": max(abs(row["error"]) for row in rows),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
