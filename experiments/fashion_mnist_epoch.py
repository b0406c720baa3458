"""README's first look at Fashion-MNIST: one epoch of ResNet-20, layer-parallel beside serial backprop.

    python -m experiments.fashion_mnist_epoch [--dir=FOLDER] [--seeds=1]

Writes experiments/results/fashion_mnist_epoch.json, or --out.

`configs/fashion_mnist_resnet20.py` with num_epochs=1, each run a process of its own, one after the other: backprop on
one CPU device (which uses all cores where XLA can), the four stages on two CPU devices.  About 15 minutes on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.provenance import provenance
from lpjax.training.writers import write_json

METHODS = {"serial": ("--config.method=serial",), "layer_parallel": ("--config.mesh.stage=2",)}
KEPT = ("test_accuracy", "aux_path_accuracy", "relative_violation", "steps", "seconds_total", "examples_per_second")


def train_once(method: str, seed: int, folder: str | None) -> dict:
    """result.json of one epoch."""
    with tempfile.TemporaryDirectory() as workdir:
        arguments = [
            "--config=configs/fashion_mnist_resnet20.py",
            "--config.num_epochs=1",
            "--config.optimizer.warmup_epochs=0.1",
            "--config.aux_optimizer.warmup_epochs=0.1",
            f"--config.seed={seed}",
            *([f"--config.data.dir={folder}"] if folder else []),
            *METHODS[method],
            f"--workdir={workdir}",
        ]
        subprocess.run([sys.executable, "-m", "lpjax.main", *arguments], check=True)
        return json.loads((Path(workdir) / "result.json").read_text())


def markdown(rows: list[dict]) -> str:
    """The table of the README."""
    lines = [
        "| method | seed | test accuracy after one epoch | AuxNet path | images/s | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        path = "" if row["aux_path_accuracy"] is None else f"{row['aux_path_accuracy']:.4f}"
        lines.append(
            f"| {row['method']} | {row['seed']} | {row['test_accuracy']:.4f} | {path} "
            f"| {row['examples_per_second']:.0f} | {row['seconds_total']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="folder of the IDX files, where it is not the config's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/fashion_mnist_epoch.json"))
    args = parser.parse_args()
    header = provenance("experiments.fashion_mnist_epoch", sys.argv[1:])
    rows = []
    for seed in range(args.seeds):
        for method in METHODS:
            result = train_once(method, seed, args.dir)
            rows.append({"method": method, "seed": seed, **{name: result[name] for name in KEPT}})
            print(rows[-1], flush=True)
    write_json(args.out, header | {"rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
