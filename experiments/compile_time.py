"""README's compile times: the step of a ResNet-20 and of a ResNet-110, whose blocks are scanned.

    python -m experiments.compile_time [--repeats=3] [--out=experiments/results/compile_time.json]

Traces, lowers and compiles each step for CIFAR-10's shapes (32x32x3, width 16, batch 128, K = 4 stages on 4 CPU
devices; serial on 1), `repeats` times in turn with empty caches; nothing is trained.  About 3 minutes on 2 cores.
"""

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import jax

from experiments.digits_policies import commit, cpu_name
from lpjax import tables, train
from lpjax.config import Config, DataConfig, MeshConfig, ModelConfig
from lpjax.main import provide_devices
from lpjax.metrics import write_json


def compile_seconds(config: Config) -> dict[str, float]:
    """Seconds to trace and lower, and to compile, the step of a configuration."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = train.lower(train.prepare(config))
    middle = time.perf_counter()
    lowered.compile()
    return {"trace": middle - start, "compile": time.perf_counter() - middle}


def markdown(rows: list[dict]) -> str:
    """The table of the README."""
    lines = ["| step | ResNet-20, trace + compile | ResNet-110, trace + compile |", "|---|---|---|"]
    cells = {
        (row["method"], row["network"]): f"{row['trace_seconds_median']:.1f} + {row['compile_seconds_median']:.1f} s"
        for row in rows
    }
    for method in dict.fromkeys(row["method"] for row in rows):
        lines.append(f"| {method} | {cells[method, 'resnet-20']} | {cells[method, 'resnet-110']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/compile_time.json"))
    args = parser.parse_args()
    provide_devices(4)
    cases = {
        (method, depth): Config(
            method=method,
            batch_size=128,
            data=DataConfig(name="cifar10"),
            model=ModelConfig(arguments={"depth": depth, "width": 16}),
            dry_run=True,
            mesh=MeshConfig(stage=4 if method == "layer_parallel" else 1),
        )
        for method in ("serial", "layer_parallel")
        for depth in (20, 110)
    }
    seconds: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(args.repeats):
        for case, config in cases.items():
            seconds[case].append(compile_seconds(config))
            print(*case, seconds[case][-1], flush=True)
    rows = [
        {
            "method": method,
            "network": f"resnet-{depth}",
            "n": len(times),
            **{f"{part}_seconds_median": statistics.median(t[part] for t in times) for part in ("trace", "compile")},
            "runs": times,
        }
        for (method, depth), times in seconds.items()
    ]
    header = {
        "command": "python -m experiments.compile_time " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": cpu_name(),
        "versions": tables.versions(),
    }
    write_json(args.out, header | {"rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
