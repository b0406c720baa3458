"""README's compile times: the step of a ResNet-20, a ResNet-110 and a ResNet-1202, whose blocks are scanned.

    python -m experiments.compile_time [--repeats=3] [--out=experiments/results/compile_time.json]

Traces, lowers and compiles each step for CIFAR-10's shapes (32x32x3, width 16, batch 128; a CPU device a stage),
`repeats` times in turn with empty caches; nothing is trained.  About 6 minutes on 2 cores.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax

from experiments.provenance import provenance
from lpjax.config.schema import AuxConfig, Config, DataConfig, ModelConfig
from lpjax.methods import METHODS
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs
from lpjax.training.writers import write_json


def compile_seconds(config: Config) -> dict[str, float]:
    """Seconds to trace and lower, and to compile, the step of a configuration."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = runs.lower(runs.prepare(config))
    middle = time.perf_counter()
    lowered.compile()
    return {"trace": middle - start, "compile": time.perf_counter() - middle}


def markdown(rows: list[dict]) -> str:
    """The table of the README."""
    lines = ["| network | step | stages | trace + compile, s |", "|---|---|---|---|"]
    for row in rows:
        seconds = f"{row['trace_seconds_median']:.1f} + {row['compile_seconds_median']:.1f}"
        lines.append(f"| {row['network']} | {row['method']} | {row['num_stages']} | {seconds} |")
    return "\n".join(lines)


def case(method: str, depth: int, num_stages: int = 4) -> Config:
    """A step of a CIFAR ResNet, as `configs/cifar10_resnet110.py` and its like have it."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/compile_time.json"))
    args = parser.parse_args()
    provide_devices(16)
    cases = [
        case("serial", 20),
        case("serial", 110),
        case("layer_parallel", 20),
        case("layer_parallel", 110),
        case("layer_parallel", 1202, num_stages=16),
    ]
    seconds: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(args.repeats):
        for config, times in zip(cases, seconds, strict=True):
            times.append(compile_seconds(config))
            print(config.method, config.model.arguments["depth"], times[-1], flush=True)
    rows = [
        {
            "method": config.method,
            "network": f"ResNet-{config.model.arguments['depth']}",
            "num_stages": config.num_stages if METHODS[config.method].staged else 1,
            "n": len(times),
            **{f"{part}_seconds_median": statistics.median(t[part] for t in times) for part in ("trace", "compile")},
            "runs": times,
        }
        for config, times in zip(cases, seconds, strict=True)
    ]
    header = provenance("experiments.compile_time", sys.argv[1:])
    write_json(args.out, header | {"rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
