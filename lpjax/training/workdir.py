"""The folder of a run: who may write to it, and its files.

metrics.jsonl and TensorBoard events grow line by line; config.json, structure.json, result.json and the like are each
written as a whole.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from lpjax.errors import BadInput
from lpjax.parallel import processes


class WorkdirError(BadInput):
    """A folder cannot be the workdir of this run; the message says what to do."""


@contextlib.contextmanager
def lock_for_all(workdir: Path) -> Iterator[None]:
    """Lock the folder for all processes of a run: process 0 locks it, and all must see it.

    Raises:
      WorkdirError: See `lock`; on every process.
      BadInput: A process does not see the folder; on every process.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if processes.is_writer():
            try:
                stack.enter_context(lock(workdir))
            except WorkdirError as error:
                problem = str(error)
        problem = processes.broadcast(problem)
        if problem:
            raise WorkdirError(problem)
        processes.check_shared(workdir)
        yield


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Make the folder and lock it for this process, until that ends in whatever way.

    Raises:
      WorkdirError: The folder cannot be written to, or another process has locked it.
    """
    path = workdir / "lock"
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        raise WorkdirError(f"workdir={workdir}: expected a name in UTF-8, for checkpoints; choose another") from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise WorkdirError(
            f"workdir={workdir}: expected a folder that can be written to ({error}); choose another --workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise WorkdirError(
                f"workdir={workdir}: another run is writing to it ({file.read().strip() or error}); wait for it or "
                f"stop it, or choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


_FILES = ("config.json", "eval.json", "metrics.jsonl", "result.json", "seconds.json", "structure.json")
PARTS = (*_FILES, "checkpoints", "profile", "tensorboard")
"""What a run leaves in its folder."""


def set_aside(workdir: Path) -> Path | None:
    """Move what an earlier run left in `workdir` to a new folder inside.

    Returns:
      That folder; None where there was nothing.
    """
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


CLOCK = ("data_seconds", "seconds")
"""Fields of a line that differ between runs of the same numbers."""


def plain(value: Any) -> Any:
    """A metric in JSON's types: arrays as (lists of) floats."""
    return np.asarray(value, np.float64).tolist() if hasattr(value, "shape") else value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of JSON, as a whole or not at all."""
    _write(path, json.dumps(values, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


class Writer:
    """Writes metrics of steps, to TensorBoard and as lines of metrics.jsonl, after what is there.

    A line has "step", "epoch", "seconds" (that the run took so far, of all processes that carried it on) and "kind"
    ("train", "eval", "recovery" or "phase"); a list stands for stages or interfaces, in order.
    """

    def __init__(self, workdir: Path, step: int, stays: Callable[[dict[str, Any]], bool]) -> None:
        """Open the files, and take lines out of metrics.jsonl, which changes as a whole or not at all.

        Args:
          workdir: Of the run.
          step: The last one whose metrics stay; TensorBoard hides what it has of later ones.
          stays: Whether a line, as read, does; one that is not whole does not.
        """
        path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        _write(path, "".join(line for line in lines if line.endswith("\n") and stays(json.loads(line))))
        self._lines = path.open("a", buffering=1)
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Not a SummaryWriter: that writes in a thread, and waits for it for ever where the disk is full.
        self._events = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **what: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **what))

    def write(self, kind: str, step: int, epoch: float, metrics: Mapping[str, Any]) -> None:
        """Write a line, and events, of one step.

        Args:
          kind: Of the line.
          step: The step.
          epoch: The passes over the training set at its end.
          metrics: By name; those that are None are left out.
        """
        metrics = {name: plain(value) for name, value in metrics.items() if value is not None}
        self._lines.write(json.dumps({"kind": kind, "step": step, "epoch": round(epoch, 4), **metrics}) + "\n")
        leaves = jax.tree.leaves_with_path({kind: metrics})
        scalars = [
            Summary.Value(tag=keystr(path, simple=True, separator="/"), simple_value=x)
            for path, x in leaves
            if not isinstance(x, str)
        ]
        self._event(step, summary=Summary(value=scalars))

    def sync(self) -> None:
        """Wait until what was written is on disk, not only with the system."""
        os.fsync(self._lines.fileno())
        self._events.flush()

    def close(self) -> None:
        """Close both files, also where one of them fails."""
        with contextlib.closing(self._lines), contextlib.closing(self._events):
            pass
