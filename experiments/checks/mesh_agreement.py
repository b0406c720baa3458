"""How far meshes of 1, 2 and 4 devices agree, step by step, on configs/digits.py.

In single and in double precision: the largest relative difference of a step's metrics.  About 4 minutes on 2 cores.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.harness import markdown, runs
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.runs import arguments

COMPARED = ("task_loss", "stage_loss", "gradient_norm", "relative_violation", "output_square", "aux_task_loss")
STEPS = (1, 2, 5, 10, 20, 50, 110)  # of which the JSON tells
BY_STEP = "largest_relative_difference_by_step"


def metrics(stage: int, steps: int, *, double: bool) -> tuple[str, list[Json]]:
    """The command, and the training lines of its metrics.jsonl."""
    fields = {"mesh.stage": stage, "num_steps": steps, "log_every": 1, "eval.every_epochs": 0}
    words = ["--config=configs/digits.py", *arguments(fields)]
    with tempfile.TemporaryDirectory() as folder:
        if not runs.call("main", [*words, f"--workdir={folder}"], {"JAX_ENABLE_X64": str(int(double))}):
            raise RuntimeError(f"mesh.stage={stage}: the run failed")
        found = runs.lines(Path(folder), "train")
    return " ".join(["JAX_ENABLE_X64=1"] * double + ["python -m lpjax.main", *words]), found


def run(call: Call, steps: int = 110) -> Iterator[Json]:
    """The JSON after every mesh."""
    rows = []
    for double in (False, True):
        _, reference = metrics(1, steps, double=double)
        for stage in (2, 4):
            command, found = metrics(stage, steps, double=double)
            pairs = zip(reference, found, strict=True)
            relative = [[np.abs(np.subtract(b[n], a[n])) / np.abs(a[n]) for n in COMPARED] for a, b in pairs]
            differences = [float(max(map(np.max, own))) for own in relative]
            told: Json = {"precision": "double" if double else "single", "mesh.stage": stage, "n": 1, "seed": 0}
            told[BY_STEP] = {str(step): differences[step - 1] for step in STEPS if step <= steps}
            rows.append({**told, "largest_relative_difference": max(differences), "command": command})
            print(rows[-1], flush=True)
            yield {"rows": rows}


def by_step(made: Json) -> str:
    """A line a precision and mesh."""
    rows = made["rows"]
    shown = [[f"{row['precision']}, {row['mesh.stage']}", *(f"{v:.0e}" for v in row[BY_STEP].values())] for row in rows]
    return markdown.table(["precision, S", *(f"step {step}" for step in rows[0][BY_STEP])], shown)


EXPERIMENT = Experiment(run, out="mesh_agreement", show=by_step, tables={"mesh": Table(by_step, ("mesh_agreement",))})
