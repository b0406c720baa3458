"""README's figure on meshes: how far S = 1, 2 and 4 devices along 'stage' agree on configs/digits.py.

    python -m experiments.mesh_agreement [--steps=110] [--out=experiments/results/mesh_agreement.json]

Runs each mesh in single and in double precision and compares every training figure of every step with S = 1's, as the
largest relative difference.  About 4 minutes on 2 cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments.provenance import provenance
from lpjax.training.writers import write_json

COMPARED = ("task_loss", "stage_loss", "gradient_norm", "relative_violation", "output_square", "aux_task_loss")
REPORTED_STEPS = (1, 2, 5, 10, 20, 50, 110)


def figures(stage: int, steps: int, *, double: bool) -> tuple[str, list[dict]]:
    """The command, and the training lines of its metrics.jsonl."""
    fields = {"mesh.stage": stage, "num_steps": steps, "log_every": 1, "eval.every_epochs": 0}
    command = ["-m", "lpjax.main", "--config=configs/digits.py", *(f"--config.{k}={v}" for k, v in fields.items())]
    with tempfile.TemporaryDirectory() as workdir:
        environment = os.environ | {"JAX_ENABLE_X64": str(int(double))}
        run = [sys.executable, *command, f"--workdir={workdir}"]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, env=environment)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    shown = " ".join([*(["JAX_ENABLE_X64=1"] if double else []), "python", *command])
    return shown, [line for line in lines if line["kind"] == "train"]


def difference(one: dict, other: dict) -> float:
    """Largest relative difference of the compared figures of one step."""
    worst = [np.abs(np.subtract(other[name], one[name])) / np.abs(one[name]) for name in COMPARED]
    return float(max(np.max(w) for w in worst))


def markdown(rows: list[dict]) -> str:
    """The table of the README."""
    steps = list(rows[0]["largest_relative_difference_by_step"])
    lines = [f"| precision, S | {' | '.join(f'step {step}' for step in steps)} |", "|---" * (len(steps) + 1) + "|"]
    for row in rows:
        values = " | ".join(f"{value:.0e}" for value in row["largest_relative_difference_by_step"].values())
        lines.append(f"| {row['precision']}, {row['mesh.stage']} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/mesh_agreement.json"))
    args = parser.parse_args()
    rows = []
    for double in (False, True):
        _, reference = figures(1, args.steps, double=double)
        for stage in (2, 4):
            command, lines = figures(stage, args.steps, double=double)
            differences = [difference(one, other) for one, other in zip(reference, lines, strict=True)]
            by_step = {str(step): differences[step - 1] for step in REPORTED_STEPS if step <= args.steps}
            rows.append(
                {
                    "precision": "double" if double else "single",
                    "mesh.stage": stage,
                    "n": 1,
                    "seed": 0,
                    "largest_relative_difference_by_step": by_step,
                    "largest_relative_difference": max(differences),
                    "command": command,
                }
            )
            print(rows[-1], flush=True)
    header = provenance("experiments.mesh_agreement", sys.argv[1:])
    write_json(args.out, header | {"rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
