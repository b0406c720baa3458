"""The folder of a run: who may write to it."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lpjax.errors import BadInput
from lpjax.parallel import processes


class WorkdirError(BadInput):
    """A folder cannot be the workdir of this run; the message says what to do."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """`locked`, for all processes of a run: process 0 holds the folder, and all must see it.

    Raises WorkdirError on every process.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if processes.is_writer():
            try:
                stack.enter_context(locked(workdir))
            except WorkdirError as error:
                problem = str(error)
        problem = processes.broadcast(problem)
        if problem:
            raise WorkdirError(problem)
        processes.check_shared(workdir)
        yield


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process, until it ends in whatever way.

    Raises WorkdirError where it cannot be written to or another process holds it.
    """
    path = workdir / "lock"
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
