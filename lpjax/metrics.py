"""Where the figures of a run go: metrics.jsonl, TensorBoard events, the terminal; result.json at the end."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from lpjax.watch import duration

PARTS = (
    "checkpoints",
    "config.json",
    "eval.json",
    "metrics.jsonl",
    "profile",
    "result.json",
    "seconds.json",
    "structure.json",
    "tensorboard",
)
CLOCK = ("data_seconds", "seconds")
"""Figures of a line that another run of the same numbers has otherwise."""


def plain(value: Any) -> Any:
    """A figure as JSON types: arrays as (lists of) floats."""
    return np.asarray(value, np.float64).tolist() if hasattr(value, "shape") else value


def set_aside(workdir: Path) -> Path | None:
    """Move what an earlier run left in `workdir` to a new folder inside; returns that folder, if there was any."""
    found = [workdir / name for name in PARTS if (workdir / name).exists()]
    if not found:
        return None
    number = 1
    while (target := workdir / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target


def prune(workdir: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave the lines of metrics.jsonl that are whole and that `keep` wants; the file changes as one or not at all."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    part = path.with_name(path.name + ".part")
    part.write_text("".join(line for line in lines if line.endswith("\n") and keep(json.loads(line))))
    part.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """`values` as a whole file or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    part.replace(path)


class Writer:
    """Figures of steps, in TensorBoard and as lines of metrics.jsonl, added to what is there.

    A line has "step", "epoch", "seconds" (that the run took so far, of all processes that carried it on) and "kind"
    ("train", "eval" or "recovery"); a list stands for stages or interfaces, in order.  step: the last one whose figures
    stay; TensorBoard hides what it has of later ones.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._lines = (workdir / "metrics.jsonl").open("a", buffering=1)
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not a SummaryWriter: that writes in a thread, and waits for it for ever where the disk is full.
        self._events = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **what: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **what))

    def write(self, kind: str, step: int, epoch: float, figures: Mapping[str, Any]) -> None:
        """A line, and events, of one step; figures that are None are left out."""
        figures = {name: plain(value) for name, value in figures.items() if value is not None}
        self._lines.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **figures}) + "\n")
        scalars = [
            Summary.Value(tag=f"{kind}/{name}{suffix}", simple_value=number)
            for name, value in figures.items()
            for suffix, number in (
                [(f"/{i}", x) for i, x in enumerate(value)] if isinstance(value, list) else [("", value)]
            )
        ]
        self._event(step, summary=Summary(value=scalars))

    def sync(self) -> None:
        """Until what was written is on disk, not only with the system."""
        os.fsync(self._lines.fileno())
        self._events.flush()

    def close(self) -> None:
        """Both files, also where one of them fails."""
        with contextlib.closing(self._lines), contextlib.closing(self._events):
            pass


class Nowhere:
    """A `Writer` that writes nothing: of the processes that do not write."""

    def write(self, kind: str, step: int, epoch: float, figures: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Display:
    """A progress bar on a terminal, plain lines elsewhere: loss, accuracy, violation, examples per second."""

    def __init__(self, console: Console, num_steps: int, batch_size: int, done: int = 0) -> None:
        self._console = console
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._clock = time.perf_counter(), done
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._progress.add_task("compiling", total=num_steps, completed=done)
            self._progress.start()

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def show(self, step: int, epoch: float, figures: Mapping[str, Any], seconds_left: float | None) -> None:
        """The figures of a training step, and about how long the others will take."""
        now, (before, last) = time.perf_counter(), self._clock
        self._clock = now, step
        rate = (step - last) * self._batch_size / max(now - before, 1e-9)
        violation = (
            max(plain(figures["relative_violation"]), default=math.nan) if "relative_violation" in figures else None
        )
        parts = [f"loss {float(figures['task_loss']):.4f}", f"accuracy {float(figures['accuracy']):.3f}"]
        parts += [f"violation {violation:.3f}"] if violation is not None else []
        parts += [f"{rate:,.0f} examples/s"]
        parts += [f"{duration(seconds_left)} left"] if seconds_left is not None and not self._progress else []
        text = "  ".join(parts)
        if self._progress:
            self._progress.update(self._task, description=text)
        else:
            self._console.print(f"step {step}/{self._num_steps}  epoch {epoch:.1f}  {text}", highlight=False)

    def say(self, text: str) -> None:
        """A line of text."""
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress:
            self._progress.stop()
