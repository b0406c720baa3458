"""The folder of a run: who may write to it."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lpjax import distributed


class WorkdirError(ValueError):
    """A folder cannot be the workdir of this run; the message says what to do."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """`locked`, for all processes of a run: process 0 holds the folder, and all must see it.

    Raises WorkdirError on every process.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if distributed.is_writer():
            try:
                stack.enter_context(locked(workdir))
            except WorkdirError as error:
                problem = str(error)
        problem = distributed.broadcast(problem)
        if problem:
            raise WorkdirError(problem)
        distributed.check_shared(workdir)
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
