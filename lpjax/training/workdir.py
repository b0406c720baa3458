"""The folder of a run: who may write to it."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

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
