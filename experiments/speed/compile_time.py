"""Seconds of a core to trace and compile a step, by the network's depth and, for every method, by the number of stages.

By depth: ResNet-20, -110 and -1202 of width 16.  By stages: ResNet-56 of width 8, on one device (S = 1) and on a device
a stage (S = K).  Batch 128, one run each with empty caches.  About half an hour on 2 cores.
"""

import time
from collections.abc import Iterator

import jax

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import fields_of, load
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs

STAGES = (4, 8, 16)
STAGED = ("pipeline", "fdg", "fdg, 8 micro-batches", "local", "coarse_tail", "coarse_adjoint, aux.grid=8")
LARGE, SMALL = "cifar10_resnet110", ("fashion_mnist_small", 56)
CASES: dict[tuple[str, int, str, str], tuple[int, ...]] = {(LARGE, 1202, "coarse_tail", "1"): (16,)}
CASES |= {(LARGE, depth, row, "1"): (4,) for depth in (20, 110) for row in ("serial", "coarse_tail")}
CASES |= {(*SMALL, row, "1"): STAGES for row in ("serial", *STAGED)}
CASES |= {(*SMALL, row, "K"): STAGES[:2] for row in ("data_parallel", *STAGED)}
"""By config file, depth, row and devices along 'stage': numbers of stages."""


def compile_seconds(config: str, depth: int, row: str, devices: str, stages: int) -> float:
    """Seconds of a core to trace, lower and compile a step."""
    jax.clear_caches()
    fields = {"model.depth": depth, "num_stages": stages, "mesh.stage": 1 if devices == "1" else stages}
    run = runs.prepare(load(f"configs/{config}.py", {"dry_run": True, "remat": depth > 1000} | fields_of(row) | fields))
    start = time.process_time()
    runs.trace(run).lower().compile()
    return time.process_time() - start


def run(call: Call) -> Iterator[Json]:
    """The JSON after every step."""
    provide_devices(max(STAGES))
    rows: list[Json] = []
    for (config, depth, row, devices), stages in CASES.items():
        rows.append({"network": f"ResNet-{depth}", "row": row, "devices": devices, "cpu_seconds": {}})
        for K in stages:
            rows[-1]["cpu_seconds"][str(K)] = compile_seconds(config, depth, row, devices, K)
            print(rows[-1], flush=True)
            yield {"rows": rows}


def by_stages(made: Json) -> str:
    """A line a step and mesh."""
    shown = []
    for row in made["rows"]:
        seconds = [row["cpu_seconds"].get(str(K)) for K in STAGES]
        shown.append([row["network"], row["row"], row["devices"], *("" if s is None else f"{s:.0f}" for s in seconds)])
    return markdown.table(["network", "step", "S", *(f"K = {K}" for K in STAGES)], shown)


TABLES = {"compile": Table(by_stages, ("compile_time",))}
EXPERIMENT = Experiment(run, out="compile_time", show=by_stages, tables=TABLES)
