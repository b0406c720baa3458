"""How the processes of a run come together: the flags that say which, and a word while they wait."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

from lpjax.errors import BadInput, require

SILENT_SECONDS = 10.0
"""How long a process waits for others before it says so."""


@contextlib.contextmanager
def waiting(which: str, most: int) -> Iterator[None]:
    """Around the wait for the other processes: says after `SILENT_SECONDS` that it waits.

    Args:
      which: This process in words, with how many there are, if that is known.
      most: Seconds until it gives up.
    """
    began = time.strftime("%H:%M:%S")
    text = f"lpjax: {which} has waited for the others since {began}; it ends if they do not come within {most} s"
    timer = threading.Timer(SILENT_SECONDS, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check(
    detect: bool, coordinator: str | None, num_processes: int | None, process_id: int | None, heartbeat_seconds: int
) -> None:
    """Check what says which processes belong together.

    Args:
      detect: Whether they are found from the environment.
      coordinator: HOST:PORT of process 0.
      num_processes: How many there are.
      process_id: Which this one is.
      heartbeat_seconds: After this silence one is lost.

    Raises:
      BadInput: It contradicts itself, or is out of range.
    """
    explicit = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    given = [f"--{name}={value}" for name, value in explicit.items() if value is not None]
    missing = [f"--{name}" for name, value in explicit.items() if value is None]
    require(heartbeat_seconds >= 2, f"--heartbeat_seconds={heartbeat_seconds}: expected at least 2")
    if detect and given:
        raise BadInput(f"--distributed with {given[0]}: expected one or the other; leave out --distributed")
    if coordinator is None or num_processes is None or process_id is None:
        if given:
            raise BadInput(f"{' '.join(given)} without {' and '.join(missing)}: expected all three; add what lacks")
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput(f"--coordinator={coordinator}: expected HOST:PORT of process 0, such as node1:12345")
    require(num_processes >= 1, f"--num_processes={num_processes}: expected at least 1")
    of_all = f"expected 0 to {num_processes - 1} (--num_processes less one)"
    require(0 <= process_id < num_processes, f"--process_id={process_id}: {of_all}")
    if process_id == 0:
        try:  # JAX crashes on a port that is taken
            with socket.create_server(("", int(port))):
                pass
        except OSError as error:
            raise BadInput(f"--coordinator={coordinator}: {error}; choose another port, for all processes") from error
