"""Seconds to trace and compile a step by depth: ResNet-20, ResNet-110, ResNet-1202, whose blocks are scanned.

For CIFAR-10's shapes (width 16, batch 128; a CPU device a stage), `repeats` times in turn with empty caches; nothing is
trained.  About 6 minutes on 2 cores.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import jax

from experiments.harness import markdown
from experiments.harness.experiment import Experiment, Json, Option, Table
from lpjax.config.schema import AuxConfig, Config, DataConfig, ModelConfig
from lpjax.methods import METHODS
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs

CASES = (
    ("serial", 20, 4),
    ("serial", 110, 4),
    ("layer_parallel", 20, 4),
    ("layer_parallel", 110, 4),
    ("layer_parallel", 1202, 16),
)
"""Method, depth and number of stages."""


def case(method: str, depth: int, num_stages: int) -> Config:
    """A step of a CIFAR ResNet."""
    return Config(
        method=method,
        batch_size=128,
        num_stages=num_stages,
        remat=depth > 1000,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(arguments={"depth": depth, "width": 16}),
        aux=AuxConfig(blocks_per_stage=2),
        dry_run=True,
    )


def compile_seconds(config: Config) -> dict[str, float]:
    """Seconds to trace and lower, and to compile, the step of a configuration."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = runs.trace(runs.prepare(config)).lower()
    middle = time.perf_counter()
    lowered.compile()
    return {"trace": middle - start, "compile": time.perf_counter() - middle}


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON after every repeat."""
    cases = [own for own in CASES if own[1] <= args.deepest]
    provide_devices(max(stages for _, _, stages in cases))
    seconds: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(args.repeats):
        for own, times in zip(cases, seconds, strict=True):
            times.append(compile_seconds(case(*own)))
            print(*own, times[-1], flush=True)
        yield {"rows": [row(*own, times) for own, times in zip(cases, seconds, strict=True)]}


def row(method: str, depth: int, num_stages: int, times: list[dict[str, float]]) -> Json:
    """A row of the JSON."""
    return {
        "method": method,
        "network": f"ResNet-{depth}",
        "num_stages": num_stages if METHODS[method].staged else 1,
        "n": len(times),
        **{f"{part}_seconds_median": statistics.median(t[part] for t in times) for part in ("trace", "compile")},
        "runs": times,
    }


def by_depth(made: Json) -> str:
    """A line a step."""
    shown = [
        [
            row["network"],
            row["method"],
            str(row["num_stages"]),
            f"{row['trace_seconds_median']:.1f} + {row['compile_seconds_median']:.1f}",
        ]
        for row in made["rows"]
    ]
    return markdown.table(["network", "step", "stages", "trace + compile, s"], shown)


EXPERIMENT = Experiment(
    name="compile_time",
    doc=__doc__,
    run=run,
    options=(Option("repeats", 3, "of each step"), Option("deepest", 1202, "network, in layers")),
    out="compile_time",
    show=by_depth,
    tables={"compile": Table(by_depth, ("compile_time",))},
)
