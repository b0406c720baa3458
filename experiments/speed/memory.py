"""Memory of a device by method and number of stages: what it holds for a step, and what it needs in it.

What the compiler says of each step's program, K stages on K devices; nothing is run.  Held: parameters, optimiser,
statistics, what a method keeps from step to step, and the batch.  Needed: temporaries, most of all activations.  Cuts
are even by operations.  CPUs' compiler lays out arrays in its own way.  Ten minutes on one core for ResNet-110.
"""

from collections.abc import Iterator

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import fields_of, load
from lpjax.cost import dry_run
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs


def run(
    call: Call, stages: str = "2,4,8", rows: str = "serial;serial, accumulate 8;serial, remat;data_parallel;pipeline;"
    "pipeline, pipeline.keep=inputs;fdg;fdg, 8 micro-batches;fdg, 8 micro-batches, delayed.keep=activations;local;"
    "coarse_tail;coarse_adjoint, own maps;coarse_adjoint",
) -> Iterator[Json]:  # fmt: skip
    """The JSON after every row."""
    every, made = list(map(int, stages.split(","))), []
    provide_devices(max(every))
    for name in dict.fromkeys(["serial", *rows.split(";")]):
        for K in [1] if fields_of(name)["method"] == "serial" else every:
            fields = {**fields_of(name), **call.fields, "num_stages": K, "dry_run": True}
            taken = dry_run.step_cost(runs.prepare(load(call.config, fields)))
            kept = {part: taken[part] for part in ("held_bytes", "temporary_bytes")}
            made.append({"row": name, "stages": K, **kept, "exchanged_bytes": taken["exchanged_bytes_total"]})
            print(made[-1], flush=True)
            yield {"config": call.config, "overrides": call.fields, "rows": made}


def over_serial(made: Json) -> str:
    """MB a device by K, held + needed, and in brackets their sum over serial's."""
    rows = {(r["row"], r["stages"]): [r[f"{part}_bytes"] / 1e6 for part in ("held", "temporary")] for r in made["rows"]}
    stages, whole, shown = sorted({K for _, K in rows if K > 1}), sum(rows["serial", 1]), []
    for name in dict.fromkeys(name for name, _ in rows):
        found = [rows[name, 1 if (name, 1) in rows else K] for K in stages]
        cells = [f"{held:.1f} + {needed:.0f} ({(held + needed) / whole:.2f})" for held, needed in found]
        shown.append([name, *cells])
    ideal = ["1/K", *(f"{1 / K:.2f}" for K in stages)]
    return markdown.table(["MB held + needed (over serial's)", *(f"K = {K}" for K in stages)], [*shown, ideal])


TABLES = {"memory": Table(over_serial, ("memory",))}
EXPERIMENT = Experiment(run, config="configs/cifar10_resnet110.py", out="memory", show=over_serial, tables=TABLES)
