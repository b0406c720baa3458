"""Several processes that compute one run, each with its own devices (`jax.distributed`); process 0 writes.

What is gathered, broadcast or brought to the host here is a collective: every process must come to it, in the same
order.  With one process all of it is local.

A process that is lost leaves the others waiting in a collective.  JAX's runtime notices (its heartbeats need no
collective and no interpreter) and aborts the others; `_on_abort` makes a message and an exit code of that.
"""

import ctypes
import functools
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from lpjax.errors import BadInput
from lpjax.parallel import join

EXIT_LOST_PROCESS = 4
HEARTBEAT_SECONDS = 30
START_SECONDS = 300
"""How long the processes wait for each other at the start."""
ALONE_SECONDS = 5
"""How long a process that failed waits for others that may have failed alike."""
BLOCK_BYTES = 64 << 20
"""What `to_host` brings to the host at a time: a device holds some copies of it."""


@dataclass
class _Here:
    """What is known of this process."""

    waiting: str | None = None  # the message if it is aborted while it waits for the others to start
    reached: str = "before the first step"  # how far the run is
    leaving: int | None = None  # the exit code, once it is on its way out
    heartbeat_seconds: int = HEARTBEAT_SECONDS


_here = _Here()


def initialize(
    *,
    detect: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    start_seconds: int = START_SECONDS,
) -> int:
    """Join the other processes of this run, before JAX starts a back end; returns how many there are.

    When not all of them come, or one is lost later, the process ends with a message and EXIT_LOST_PROCESS.

    Args:
      detect: Find them from the environment (SLURM, TPU, GKE, Open MPI).
      coordinator: Or say where process 0 is, HOST:PORT.  Neither: one process.
      num_processes: How many there are, with `coordinator`.
      process_id: Which this one is, with `coordinator`.
      heartbeat_seconds: After this silence a process is lost.
      start_seconds: Until all are there.

    Raises:
      BadInput: Arguments contradict each other or are out of range, before anything starts; or no process is found.
    """
    join.check(detect, coordinator, num_processes, process_id, heartbeat_seconds)
    if not (detect or coordinator):
        return 1
    _here.heartbeat_seconds = heartbeat_seconds
    _here.waiting = (
        f"not all processes came within {start_seconds} s ({coordinator or 'found from the environment'}); start all "
        f"of them, with the same coordinator and number of processes"
    )
    _trap_abort()
    which = f"process {process_id} of {num_processes}" if coordinator else "this process"
    try:
        with join.waiting(which, start_seconds):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=start_seconds,
                heartbeat_timeout_seconds=heartbeat_seconds,
            )
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise BadInput(
            f"--distributed: no other processes found ({error}); start them by srun, mpirun or on a TPU slice, or "
            f"say --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    _here.waiting = None
    return _joined()[1]


def _joined() -> tuple[int, int]:
    """This process and how many there are, without starting a back end, which `jax.process_count` does.

    Only then is it known how many CPU devices to make.  JAX has no public name for it.
    """
    from jax._src import distributed

    return distributed.global_state.process_id, distributed.global_state.num_processes


def reached(where: str) -> None:
    """Say how far the run is, such as "after step 17": for the message when a process is lost."""
    _here.reached = where


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    """In the thread that aborts, of whatever kind it is."""
    if _here.leaving is not None:
        os._exit(_here.leaving)
    me, count = _joined()
    message = _here.waiting or (
        f"lost another process {_here.reached} (JAX's runtime told process {me} of {count}, see above); start all of "
        f"them again: the run resumes from its last checkpoint"
    )
    os.write(2, f"lpjax: {message}\n".encode())
    os._exit(EXIT_LOST_PROCESS)


def _trap_abort() -> None:
    """Call `_on_abort` when the runtime aborts, set as C does it: Python's handlers would not run after `abort`."""
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    set_handler(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


def patient(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Decorate a main function: a collective's error waits, while the runtime may end this process for a lost one."""

    @functools.wraps(main)
    def waiting(argv: list[str]) -> int:
        try:
            return main(argv)
        except jax.errors.JaxRuntimeError:
            if jax.distributed.is_initialized():
                time.sleep(2 * _here.heartbeat_seconds)
            raise

    return waiting


def run(main: Callable[[list[str]], int], argv: list[str], agreed: Collection[int] = (0,)) -> int:
    """Exit code of main(argv); with several processes, leaves them and ends this one.

    Args:
      main: Arguments -> exit code.
      argv: Its arguments.
      agreed: Exit codes that all processes come to alike, such as that of a success, so that they can leave together.
        With another one this process may be the only one that failed: the interpreter's end would wait for others that
        wait for it.
    """
    try:
        code = main(argv)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    if jax.distributed.is_initialized():
        _leave(code, together=code in agreed)
    return code


def _leave(code: int, *, together: bool) -> None:
    """End this process: when all have come here, or, unless they leave together, after a while alone."""
    _here.leaving = code
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(None if together else ALONE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_writer() -> bool:
    """Whether this process writes files and prints: process 0."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Gather every process's value (of JSON's types), in the order of the processes, on all of them."""
    data = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(data)]
    lengths = multihost_utils.process_allgather(np.array([len(data)], np.int32))[:, 0]
    padded = np.frombuffer(data.ljust(lengths.max()), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def broadcast(value: Any) -> Any:
    """Give process 0's value (of JSON's types) to all processes."""
    return gather(value if is_writer() else None)[0]


def to_host(array: jax.Array) -> np.ndarray:
    """Copy an array, whole, to every process.  Not for arrays of random keys: take `jax.random.key_data`.

    What lies on other processes' devices comes in blocks of at most BLOCK_BYTES (or one row), so that no device holds
    the whole array.
    """
    if array.is_fully_addressable:
        return np.array(array)
    if array.is_fully_replicated:
        return np.array(array.addressable_data(0))
    out = np.empty(array.shape, array.dtype)
    shards = [shard for shard in array.global_shards if shard.replica_id == 0]  # no copies
    for shard in sorted(shards, key=lambda shard: shard.device.id):  # all processes come to them in this order
        mine = shard.device.process_index == jax.process_index()
        region = out[shard.index]
        if mine:
            region[...] = shard.data
        rows = max(1, BLOCK_BYTES // max(1, region[:1].nbytes))
        for start in range(0, len(region), rows):
            # As bytes, so that every type comes as it is: JAX sums the processes' parts, all but one of them zero.
            block = np.ascontiguousarray(region[start : start + rows])
            sent = block.reshape(-1).view(np.uint8) if mine else np.zeros(block.nbytes, np.uint8)
            received = multihost_utils.broadcast_one_to_all(sent, is_source=mine)
            region[start : start + rows] = np.asarray(received).view(block.dtype).reshape(block.shape)
    return out


def from_host(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """Make an array over the devices of all processes from a value that every process has whole.

    The value must not change afterwards: a CPU device may use its memory.  (`jax.device_put` would compare the
    processes' values first, at every call.)
    """
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def check_shared(workdir: Path, wait_seconds: float = 10.0) -> None:
    """Check that all processes see the same folder.

    Args:
      workdir: The folder, which must exist.
      wait_seconds: Until a file of process 0 is there, for network file systems.

    Raises:
      BadInput: They do not; on every process.
    """
    if jax.process_count() == 1:
        return
    token = workdir / broadcast(f".shared-{secrets.token_hex(8)}")
    if is_writer():
        token.touch()
    gather(None)
    deadline = time.monotonic() + wait_seconds
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [f"{i} ({host})" for i, (host, sees) in enumerate(gather([socket.gethostname(), seen])) if not sees]
    if is_writer():
        token.unlink()
    if blind:
        raise BadInput(
            f"--workdir={workdir}: process {', '.join(blind)} does not see the files of process 0 there: expected one "
            f"folder for all processes; choose one on a file system that the hosts share"
        )
