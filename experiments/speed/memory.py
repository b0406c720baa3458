"""Memory of a device by method and number of stages: what it holds for a step, and what it needs in it.

What the compiler says of each step's program, K stages on K devices; nothing is run.  Held: parameters, optimiser,
statistics, what a method keeps from step to step, and the batch.  Needed: temporaries, most of all activations.  Cuts
are even by operations.  CPUs' compiler lays out arrays in its own way.  Ten minutes on one core for ResNet-110.
"""

import argparse
from collections.abc import Iterator

from experiments.harness import markdown, stats
from experiments.harness.experiment import Experiment, Json, Option, Table
from experiments.harness.rows import Fields, fields_of, load
from lpjax.cost import dry_run
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs


def compiled(path: str, row: str, num_stages: int, more: Fields) -> Json:
    """A row of the JSON."""
    fields = {**fields_of(row), **more, "num_stages": num_stages, "dry_run": True}
    taken = dry_run.step_cost(runs.prepare(load(path, fields)))
    kept = {name: taken[name] for name in ("held_bytes", "temporary_bytes")}
    return {"row": row, "stages": num_stages, **kept, "exchanged_bytes": taken["exchanged_bytes_total"]}


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON after every row."""
    stages, rows = [int(K) for K in args.stages.split(",")], []
    provide_devices(max(stages))
    for name in dict.fromkeys(["serial", *args.rows.split(";")]):
        for K in [1] if name == "serial" else stages:
            rows.append(compiled(args.config, name, K, args.fields))
            print(rows[-1], flush=True)
            yield {"config": args.config, "overrides": args.fields, "rows": rows}


def over_serial(made: Json) -> str:
    """MB a device by K, held + needed, and in brackets their sum over serial's."""
    rows = made["rows"]
    stages = sorted({row["stages"] for row in rows if row["row"] != "serial"})
    serial = stats.row_of(rows, "serial", 1)
    assert serial is not None
    shown = []
    for name in dict.fromkeys(row["row"] for row in rows):
        cells = []
        for K in stages:
            row = stats.row_of(rows, name, K)
            assert row is not None, (name, K)
            held, needed = row["held_bytes"] / 1e6, row["temporary_bytes"] / 1e6
            whole = (serial["held_bytes"] + serial["temporary_bytes"]) / 1e6
            cells.append(f"{held:.1f} + {needed:.0f} ({(held + needed) / whole:.2f})")
        shown.append([name, *cells])
    ideal = ["1/K", *(f"{1 / K:.2f}" for K in stages)]
    return markdown.table(["MB held + needed (over serial's)", *(f"K = {K}" for K in stages)], [*shown, ideal])


EXPERIMENT = Experiment(
    name="memory",
    doc=__doc__,
    run=run,
    options=(
        Option(
            "rows",
            "serial;data_parallel;pipeline;fdg;local;coarse_tail;coarse_adjoint, own maps;coarse_adjoint",
            "with ; between them",
        ),
        Option("stages", "2,4,8", "numbers of stages K"),
    ),
    config="configs/cifar10_resnet110.py",
    out="memory",
    show=over_serial,
    tables={"memory": Table(over_serial, ("memory",))},
)
