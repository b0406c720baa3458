"""Seconds to trace and compile a step by depth: ResNet-20, -110 and -1202, whose blocks are scanned.

For CIFAR-10's shapes (width 16, batch 128; a CPU device a stage), `repeats` times in turn with empty caches; nothing is
trained.  About 6 minutes on 2 cores.
"""

import statistics
import time
from collections.abc import Iterator

import jax

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import load
from lpjax.methods import METHODS
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs

CASES = [(method, depth, 4) for method in ("serial", "layer_parallel") for depth in (20, 110)]
CASES += [("layer_parallel", 1202, 16)]
"""Method, depth and number of stages."""


def compile_seconds(method: str, depth: int, num_stages: int) -> dict[str, float]:
    """Seconds to trace and lower, and to compile, a step."""
    jax.clear_caches()
    fields = {"method": method, "model.depth": depth, "num_stages": num_stages, "remat": depth > 1000, "dry_run": True}
    config = load("configs/cifar10_resnet110.py", fields | {"aux.blocks_per_stage": 2, "aux.grid": None})
    start = time.perf_counter()
    lowered = runs.trace(runs.prepare(config)).lower()
    middle = time.perf_counter()
    lowered.compile()
    return {"trace": middle - start, "compile": time.perf_counter() - middle}


def run(call: Call, repeats: int = 3, deepest: int = 1202) -> Iterator[Json]:
    """The JSON after every repeat."""
    timed: dict[tuple[str, int, int], list[dict[str, float]]] = {own: [] for own in CASES if own[1] <= deepest}
    provide_devices(max(stages for _, _, stages in timed))
    for _ in range(repeats):
        rows = []
        for (method, depth, stages), times in timed.items():
            times.append(compile_seconds(method, depth, stages))
            told: Json = {"method": method, "network": f"ResNet-{depth}", "n": len(times), "runs": times}
            told["num_stages"] = stages if METHODS[method].staged else 1
            told |= {f"{part}_seconds_median": statistics.median(t[part] for t in times) for part in times[0]}
            rows.append(told)
            print(method, depth, times[-1], flush=True)
        yield {"rows": rows}


def by_depth(made: Json) -> str:
    """A line a step."""
    shown = []
    for row in made["rows"]:
        seconds = f"{row['trace_seconds_median']:.1f} + {row['compile_seconds_median']:.1f}"
        shown.append([row["network"], row["method"], str(row["num_stages"]), seconds])
    return markdown.table(["network", "step", "stages", "trace + compile, s"], shown)


EXPERIMENT = Experiment(run, out="compile_time", show=by_depth, tables={"compile": Table(by_depth, ("compile_time",))})
