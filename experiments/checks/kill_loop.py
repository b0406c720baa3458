"""Whether a run that is killed again and again ends with the arrays of one that was left alone.

Trains a ResNet-8 on the digits, four stages on four devices, with a checkpoint every ten steps: once undisturbed, once
with SIGKILL at random moments, a third of them as soon as a checkpoint is being written.  Then compares every array of
the last checkpoint bit for bit, and every line of metrics.jsonl but its clocks.  About 15 minutes on 2 cores.
"""

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.harness import markdown
from experiments.harness.experiment import Experiment, Json, Option, Table
from experiments.harness.runs import arguments, start
from lpjax.training import checkpoint
from lpjax.training.writers import CLOCK

FIELDS = {
    "model.depth": 8,
    "num_epochs": 200,
    "batch_size": 64,
    "log_every": 1,
    "eval.every_epochs": 5,
    "checkpoint.every_steps": 10,
}


def begin(workdir: Path, steps: int, cache: Path) -> subprocess.Popen[str]:
    """The run, from wherever `workdir` has got; what it says goes to a file beside it."""
    words = ["--config=configs/digits.py", *arguments(FIELDS | {"num_steps": steps}), f"--workdir={workdir}"]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    return start("main", words, environment, Path(f"{workdir}.log"))


def ended(process: subprocess.Popen[str], workdir: Path) -> None:
    """Wait for the end of a run.

    Raises:
      RuntimeError: It failed.
    """
    if process.wait():
        raise RuntimeError(f"{workdir.name}: the run failed: {Path(f'{workdir}.log').read_text()[-2000:]}")


def half_written(workdir: Path) -> set[str]:
    """Checkpoints that are being written, or that a killed process left so."""
    return {path.name for path in workdir.glob("checkpoints/*orbax-checkpoint-tmp*")}


def kill(process: subprocess.Popen[str], workdir: Path, *, after: float, saving: bool) -> Json | None:
    """Kill the run after some seconds (and then as soon as it is saving); what it was doing, None if it had ended."""
    began, left = time.monotonic(), half_written(workdir)
    while time.monotonic() - began < after or (saving and not half_written(workdir) - left):
        if process.poll() is not None:
            return None
        time.sleep(0.001)
    process.kill()
    process.wait()
    said = Path(f"{workdir}.log").read_text().splitlines()
    return {
        "seconds": round(time.monotonic() - began, 3),
        "while_saving": bool(half_written(workdir) - left),
        "last_checkpoint": max(checkpoint.steps(workdir / "checkpoints"), default=None),
        "last_line": next((line for line in reversed(said) if line.strip()), "").split("  ")[0],
    }


def metrics(workdir: Path) -> list[Json]:
    """The lines of metrics.jsonl without the clocks."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in found]


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON at the end."""
    kills: list[Json] = []
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, cache = (Path(folder) / name for name in ("whole", "killed", "cache"))
        ended(begin(whole, args.steps, cache), whole)
        while len(kills) < args.kills:
            process = begin(killed, args.steps, cache)
            event = kill(process, killed, after=rng.uniform(0, args.longest), saving=rng.random() < 1 / 3)
            if event is None:
                raise RuntimeError(f"the run ended after {len(kills)} kills: expected {args.kills}; more --steps?")
            kills.append(event)
            print(event, flush=True)
        ended(begin(killed, args.steps, cache), killed)
        yield outcome(args, whole, killed, kills)


def outcome(args: argparse.Namespace, whole: Path, killed: Path, kills: list[Json]) -> Json:
    """What the two runs have in common."""
    arrays, expected = (checkpoint.read(path / "checkpoints", args.steps).arrays for path in (killed, whole))
    assert arrays.keys() == expected.keys()
    differing = [name for name, value in expected.items() if not np.array_equal(arrays[name], value)]
    equal = metrics(killed) == metrics(whole)
    row = {
        "n": 1,
        "seed": args.seed,
        "steps": args.steps,
        "kills": len(kills),
        "kills_while_saving": sum(event["while_saving"] for event in kills),
        "kills_before_the_first_checkpoint": sum(event["last_checkpoint"] is None for event in kills),
        "arrays": len(expected),
        "arrays_that_differ": differing,
        "metrics_lines": len(metrics(whole)),
        "metrics_equal": equal,
        "damaged_checkpoints": [path.name for path in killed.glob("damaged-*")],
    }
    return {"failed": differing + ["metrics.jsonl"] * (not equal), "rows": [row], "events": kills}


def counts(made: Json) -> str:
    """A line a loop."""
    heading = [
        "kills",
        "while saving",
        "before the first checkpoint",
        "arrays",
        "that differ",
        "lines of metrics",
        "equal",
    ]
    names = ("kills", "kills_while_saving", "kills_before_the_first_checkpoint", "arrays")
    shown = [
        [
            *(str(row[name]) for name in names),
            str(len(row["arrays_that_differ"])),
            str(row["metrics_lines"]),
            "yes" if row["metrics_equal"] else "no",
        ]
        for row in made["rows"]
    ]
    return markdown.table(heading, shown)


EXPERIMENT = Experiment(
    name="kill_loop",
    doc=__doc__,
    run=run,
    options=(
        Option("kills", 30, "how many"),
        Option("seed", 0, "of the moments"),
        Option("steps", 2200, "of the run"),
        Option("longest", 20.0, "seconds from a start to its kill"),
    ),
    out="kill_loop",
    show=counts,
    tables={"kills": Table(counts, ("kill_loop",))},
)
