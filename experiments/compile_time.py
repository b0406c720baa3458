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
import jax.numpy as jnp
import numpy as np

from experiments.digits_policies import commit, cpu_name
from lpjax import tables, train, train_state
from lpjax.config import Config, MeshConfig, ModelConfig
from lpjax.data.feed import Batch
from lpjax.data.source import Dataset
from lpjax.main import provide_devices
from lpjax.mesh import make_mesh
from lpjax.metrics import write_json
from lpjax.models.resnet import resnet
from lpjax.network import build
from lpjax.recipe import make_recipe

IMAGE_SHAPE, CLASSES, NUM_EXAMPLES = (32, 32, 3), 10, 50_000


def compile_seconds(config: Config) -> dict[str, float]:
    """Seconds to trace and lower, and to compile, the step of a configuration."""
    images = np.zeros((1, *IMAGE_SHAPE), np.uint8)
    labels = np.zeros(NUM_EXAMPLES, np.int32)
    dataset = Dataset(images, labels, images, labels, np.zeros(3), np.ones(3))
    network = build(
        resnet(depth=config.model.depth, width=config.model.width, classes=CLASSES),
        IMAGE_SHAPE,
        num_stages=config.num_stages,
    )
    mesh = make_mesh(*config.mesh_shape)
    recipe = make_recipe(config, dataset, steps_per_epoch=NUM_EXAMPLES // config.batch_size)
    state = jax.eval_shape(lambda: train_state.create(config, network, mesh, recipe))
    index = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    batch = Batch(image=jax.ShapeDtypeStruct((config.batch_size, *IMAGE_SHAPE), jnp.uint8), label=index, index=index)
    jax.clear_caches()
    start = time.perf_counter()
    lowered = train.METHODS[config.method](network, config, mesh, recipe).lower(state, batch)  # type: ignore[attr-defined]
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
            model=ModelConfig(depth=depth, width=16),
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
