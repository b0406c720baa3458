"""README's memory: what a device holds for a step, and needs in it, by method and number of stages.

    python -m experiments.memory [--config=configs/cifar10_resnet110.py] [--stages=2,4,8] [--methods=serial,pipeline,..]
        [--out=experiments/results/memory.json] [--config.x=y ...]

What the compiler says of each step's program (`lpjax.cost.dry_run`), K stages on K devices; nothing is run.  Held:
parameters,
optimiser, statistics, what a method keeps from step to step, and the batch.  Needed: temporaries, most of all
activations.  Rows are those of `experiments.compare`, cuts are even by operations.  On CPUs, whose compiler lays out
arrays in its own way; ten minutes on one core for ResNet-110.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.compare import load, parsed, row_fields
from experiments.provenance import provenance
from lpjax.cost import dry_run
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs
from lpjax.training.writers import write_json

METHODS = "serial,data_parallel,pipeline,fdg,local,coarse_tail,coarse_adjoint,coarse_adjoint_grid"


def measured(path: Path, row: str, num_stages: int, extra: dict[str, Any]) -> dict[str, Any]:
    """A row of the JSON."""
    fields = {**row_fields(row, num_stages, 1), **extra, "dry_run": True}
    taken = dry_run.step_cost(runs.prepare(load(path, fields)))
    return {
        "row": row,
        "stages": num_stages,
        "held_bytes": taken["held_bytes"],
        "temporary_bytes": taken["temporary_bytes"],
        "exchanged_bytes": taken["exchanged_bytes_total"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """MB a device by K, held + needed, and in brackets their sum over serial's."""
    stages = sorted({row["stages"] for row in rows if row["row"] != "serial"})
    (serial,) = (row for row in rows if row["row"] == "serial")
    whole = serial["held_bytes"] + serial["temporary_bytes"]
    lines = ["| | " + " | ".join(f"K = {K}" for K in stages) + " |", "|---" * (1 + len(stages)) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = {row["stages"]: row for row in rows if row["row"] == name}
        cells = []
        for K in stages:
            row = serial if name == "serial" else own[K]
            held, needed = row["held_bytes"] / 1e6, row["temporary_bytes"] / 1e6
            cells.append(f"{held:.1f} + {needed:.0f} ({1e6 * (held + needed) / whole:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| 1/K | {' | '.join(f'{1 / K:.2f}' for K in stages)} |"])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=Path("configs/cifar10_resnet110.py"))
    parser.add_argument("--stages", default="2,4,8")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/memory.json"))
    args, extra = parser.parse_known_args(argv)
    overrides, stages = parsed(extra), [int(K) for K in args.stages.split(",")]
    provide_devices(max(stages))
    rows = []
    for name in dict.fromkeys(["serial", *args.methods.split(",")]):
        for K in [1] if name == "serial" else stages:
            rows.append(measured(args.config, name, K, overrides))
            print(rows[-1], flush=True)
    write_json(
        args.out,
        {
            **provenance("experiments.memory", argv),
            "config": str(args.config),
            "overrides": overrides,
            "rows": rows,
        },
    )
    print(markdown(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
