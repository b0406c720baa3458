"""Whether a run that is killed again and again ends with the arrays of one that was left alone.

A ResNet-8 on the digits, four stages on four devices, a checkpoint every ten steps: once undisturbed, once with SIGKILL
at random moments, a third of them while a checkpoint is written.  About 15 minutes on 2 cores.
"""

import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.runs import arguments, lines, start
from lpjax.training import checkpoint
from lpjax.training.workdir import CLOCK

FIELDS = {"model.depth": 8, "num_epochs": 200, "batch_size": 64, "log_every": 1, "eval.every_epochs": 5}
FIELDS |= {"checkpoint.every_steps": 10}


def begin(workdir: Path, steps: int, cache: Path) -> subprocess.Popen[str]:
    """The run, from wherever `workdir` has got; what it says goes to a file beside it."""
    words = ["--config=configs/digits.py", *arguments(FIELDS | {"num_steps": steps}), f"--workdir={workdir}"]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    return start("main", words, environment, Path(f"{workdir}.log"))


def end(workdir: Path, steps: int, cache: Path) -> None:
    """The run, to its end."""
    if begin(workdir, steps, cache).wait():
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
    return {
        "seconds": round(time.monotonic() - began, 3),
        "while_saving": bool(half_written(workdir) - left),
        "last_checkpoint": max(checkpoint.steps(workdir / "checkpoints"), default=None),
    }


def run(call: Call, kills: int = 30, seed: int = 0, steps: int = 2200, longest: float = 20.0) -> Iterator[Json]:
    """The JSON at the end."""
    rng, events = random.Random(seed), list[Json]()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, cache = (Path(folder) / name for name in ("whole", "killed", "cache"))
        end(whole, steps, cache)
        while len(events) < kills:
            process = begin(killed, steps, cache)
            event = kill(process, killed, after=rng.uniform(0, longest), saving=rng.random() < 1 / 3)
            if event is None:
                raise RuntimeError(f"the run ended after {len(events)} kills: expected {kills}; more --steps?")
            events.append(event)
            print(event, flush=True)
        end(killed, steps, cache)
        arrays, expected = (checkpoint.read(path / "checkpoints", steps).arrays for path in (killed, whole))
        after, before = ([own | dict.fromkeys(CLOCK) for own in lines(path)] for path in (killed, whole))
        damaged = [path.name for path in killed.glob("damaged-*")]
    assert arrays.keys() == expected.keys()
    differing = [name for name, value in expected.items() if not np.array_equal(arrays[name], value)]
    row: Json = {"n": 1, "seed": seed, "steps": steps, "kills": kills}
    row["kills_while_saving"] = sum(event["while_saving"] for event in events)
    row["kills_before_the_first_checkpoint"] = sum(event["last_checkpoint"] is None for event in events)
    row |= {"arrays": len(expected), "arrays_that_differ": differing, "metrics_lines": len(before)}
    row |= {"metrics_equal": after == before, "damaged_checkpoints": damaged}
    yield {"failed": differing + ["metrics.jsonl"] * (after != before), "rows": [row], "events": events}


def counts(made: Json) -> str:
    """A line a loop."""
    names = ("kills", "kills_while_saving", "kills_before_the_first_checkpoint", "arrays")
    shown = []
    for row in made["rows"]:
        told = [*(row[name] for name in names), len(row["arrays_that_differ"]), row["metrics_lines"]]
        shown.append([*map(str, told), "yes" if row["metrics_equal"] else "no"])
    heading = ["kills", "while saving", "before the first checkpoint", "arrays", "that differ", "lines of metrics"]
    return markdown.table([*heading, "equal"], shown)


EXPERIMENT = Experiment(run, out="kill_loop", show=counts, tables={"kills": Table(counts, ("kill_loop",))})
