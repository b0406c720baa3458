"""README's table: every multiplier policy and serial backprop on configs/digits.py, several seeds each.

    python -m experiments.digits_policies [--seeds=3] [--out=experiments/results/digits_policies.json]

Each run is a process of its own; one whose row, seed and overrides are already in the JSON file is kept, whatever
commit made it: delete the file to make them all again.  About 25 minutes on 2 cores.
"""

import argparse
import concurrent.futures
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.provenance import provenance
from lpjax.training.writers import write_json

RUNS = {
    "serial backprop": ["--config.method=serial"],
    "none (penalty)": ["--config.multiplier=none"],
    "mean": ["--config.multiplier=mean"],
    "per_example": ["--config.multiplier=per_example", "--config.data.crop=0"],
    "serial backprop, no augmentation": ["--config.method=serial", "--config.data.crop=0"],
    "adjoint": ["--config.multiplier=adjoint"],
    "coarse_tail": ["--config.multiplier=coarse_tail"],
}
"""Rows of the table: overrides of the configuration."""

KEPT = ("test_accuracy", "test_loss", "aux_path_accuracy", "aux_head_accuracy", "relative_violation", "seconds_total")


def run(overrides: list[str], seed: int) -> dict:
    """One training run in its own process."""
    command = ["-m", "lpjax.main", "--config=configs/digits.py", *overrides, f"--config.seed={seed}"]
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run(
            [sys.executable, *command, f"--workdir={workdir}", "--config.eval.every_epochs=0"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        result = json.loads((Path(workdir) / "result.json").read_text())
    return {"command": " ".join(["python", *command]), "seed": seed} | {
        k: result[k] for k in (*KEPT, "versions", "device")
    }


def summarise(runs: list[dict]) -> dict:
    """Mean and sample standard deviation over the seeds."""
    accuracies = [entry["test_accuracy"] for entry in runs]
    paths = [entry["aux_path_accuracy"] for entry in runs if entry["aux_path_accuracy"] is not None]
    return {
        "n": len(runs),
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "aux_path_accuracy_mean": statistics.mean(paths) if paths else None,
        "relative_violation_mean": [
            statistics.mean(r) for r in zip(*(e["relative_violation"] for e in runs), strict=True)
        ],
    }


def markdown(rows: dict[str, dict]) -> str:
    """The table of the README; differences are to serial backprop with the same augmentation."""
    lines = [
        "| multiplier policy | test accuracy, mean ± std (n) | minus serial | AuxNet path | relative violations |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        base = rows["serial backprop, no augmentation" if "per_example" in name else "serial backprop"]
        difference = row["test_accuracy_mean"] - base["test_accuracy_mean"]
        path = row["aux_path_accuracy_mean"]
        violation = ", ".join(f"{r:.3f}" for r in row["relative_violation_mean"])
        std = "" if row["test_accuracy_std"] is None else f" ± {row['test_accuracy_std']:.4f}"
        lines.append(
            f"| {name} | {row['test_accuracy_mean']:.4f}{std} ({row['n']}) | "
            f"{'' if name.startswith('serial') else f'{difference:+.4f}'} | "
            f"{'' if path is None else f'{path:.4f}'} | {violation} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/digits_policies.json"))
    args = parser.parse_args()
    done = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}

    def cell(name: str, seed: int) -> tuple[str, dict]:
        overrides = RUNS[name]
        for entry in done.get(name, {}).get("runs", []):
            if entry["seed"] == seed and all(part in entry["command"] for part in overrides):
                return name, entry
        return name, run(overrides, seed)

    cells = [(name, seed) for seed in range(args.seeds) for name in RUNS]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results: dict[str, list[dict]] = {name: [] for name in RUNS}
        for name, entry in pool.map(lambda cell_: cell(*cell_), cells):
            results[name].append(entry)
            print(f"{name}, seed {entry['seed']}: {entry['test_accuracy']:.4f}", flush=True)
            rows = {name: summarise(runs) | {"runs": runs} for name, runs in results.items() if runs}
            header = provenance("experiments.digits_policies", sys.argv[1:])
            write_json(args.out, header | {"rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
