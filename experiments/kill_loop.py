"""README's figure on interruptions: a run that is killed again and again ends with the arrays of one that was not.

    python -m experiments.kill_loop [--kills=30] [--seed=0] [--steps=2200] [--out=experiments/results/kill_loop.json]

Trains a ResNet-8 on the digits, four stages on four devices, with a checkpoint every ten steps: once undisturbed, once
with SIGKILL at random moments, a third of them as soon as a checkpoint is being written.  Then compares every array of
the last checkpoint bit for bit, and every line of metrics.jsonl.  About 15 minutes on 2 cores.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.provenance import provenance
from lpjax.training import checkpoint
from lpjax.training.writers import CLOCK, write_json

FIELDS = {
    "model.depth": 8,
    "num_epochs": 200,
    "batch_size": 64,
    "log_every": 1,
    "eval.every_epochs": 5,
    "checkpoint.every_steps": 10,
}


def start(workdir: Path, steps: int, cache: Path) -> subprocess.Popen:
    """The run, from wherever `workdir` has got; what it says goes to a file beside it."""
    fields = FIELDS | {"num_steps": steps}
    command = ["-m", "lpjax.main", "--config=configs/digits.py", *(f"--config.{k}={v}" for k, v in fields.items())]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    with Path(f"{workdir}.log").open("w") as said:
        return subprocess.Popen(
            [sys.executable, *command, f"--workdir={workdir}"], stdout=said, stderr=subprocess.STDOUT, env=environment
        )


def half_written(workdir: Path) -> set[str]:
    """Checkpoints that are being written, or that a killed process left so."""
    return {path.name for path in workdir.glob("checkpoints/*orbax-checkpoint-tmp*")}


def kill(process: subprocess.Popen, workdir: Path, *, after: float, saving: bool) -> dict[str, Any] | None:
    """Kill the run after some seconds (and then as soon as it is saving); what it was doing, None if it had ended."""
    began, left = time.monotonic(), half_written(workdir)
    while time.monotonic() - began < after or (saving and not half_written(workdir) - left):
        if process.poll() is not None:
            return None
        time.sleep(0.001)
    process.kill()
    process.wait()
    lines = Path(f"{workdir}.log").read_text().splitlines()
    return {
        "seconds": round(time.monotonic() - began, 3),
        "while_saving": bool(half_written(workdir) - left),
        "last_checkpoint": max(checkpoint.steps(workdir / "checkpoints"), default=None),
        "last_line": next((line for line in reversed(lines) if line.strip()), "").split("  ")[0],
    }


def figures(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    lines = ["| kills | while saving | before the first checkpoint | arrays | that differ | lines of figures | equal |"]
    lines.append("|---" * 7 + "|")
    for row in rows:
        counts = [row["kills"], row["kills_while_saving"], row["kills_before_the_first_checkpoint"], row["arrays"]]
        counts += [len(row["arrays_that_differ"]), row["metrics_lines"], "yes" if row["metrics_equal"] else "no"]
        lines.append(f"| {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/kill_loop.json"))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, cache = (Path(folder) / name for name in ("whole", "killed", "cache"))
        process = start(whole, args.steps, cache)
        if process.wait():
            raise SystemExit(f"the undisturbed run failed: {Path(f'{whole}.log').read_text()}")
        kills: list[dict[str, Any]] = []
        while len(kills) < args.kills:
            process = start(killed, args.steps, cache)
            event = kill(process, killed, after=rng.uniform(0, 20), saving=rng.random() < 1 / 3)
            if event is None:
                raise SystemExit(
                    f"exit code {process.returncode} after {len(kills)} kills: expected {args.kills}; more --steps? "
                    f"{Path(f'{killed}.log').read_text()[-2000:]}"
                )
            kills.append(event)
            print(event, flush=True)
        process = start(killed, args.steps, cache)
        if process.wait():
            raise SystemExit(f"the last process failed: {Path(f'{killed}.log').read_text()}")
        arrays, expected = (checkpoint.read(run / "checkpoints", args.steps).arrays for run in (killed, whole))
        assert arrays.keys() == expected.keys()
        different = [name for name, value in expected.items() if not np.array_equal(arrays[name], value)]
        same_lines, lines = figures(killed) == figures(whole), len(figures(whole))
        damaged = [path.name for path in killed.glob("damaged-*")]
    row = {
        "n": 1,
        "seed": args.seed,
        "steps": args.steps,
        "kills": len(kills),
        "kills_while_saving": sum(event["while_saving"] for event in kills),
        "kills_before_the_first_checkpoint": sum(event["last_checkpoint"] is None for event in kills),
        "arrays": len(expected),
        "arrays_that_differ": different,
        "metrics_lines": lines,
        "metrics_equal": same_lines,
        "damaged_checkpoints": damaged,
    }
    header = provenance("experiments.kill_loop", sys.argv[1:])
    write_json(args.out, header | {"rows": [row], "events": kills})
    print(markdown([row]))
    return 0 if same_lines and not different else 1


if __name__ == "__main__":
    sys.exit(main())
