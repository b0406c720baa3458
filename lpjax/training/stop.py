"""Signals that ask a run to stop after the step under way."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import multihost_utils

from lpjax import cli
from lpjax.errors import Error, Interrupted


class StoppedError(Error):
    """The run was asked to stop by a signal, and its state was saved."""

    exit_code = 75

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: saved; the same command goes on from there")
        if number == signal.SIGINT:
            self.exit_code = Interrupted.exit_code


@dataclass
class Requests:
    """`signal`: the number of the first one that asked the run to stop."""

    signal: int | None = None

    def at(self, step: int) -> int | None:
        """The signal after which to stop now; several processes stop after the same step, which JAX agrees on."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal


@contextlib.contextmanager
def listening() -> Iterator[Requests]:
    """A signal that asks for a stop after the step under way: SIGTERM, SIGUSR1, SIGHUP, the first Ctrl-C.

    A second Ctrl-C is a KeyboardInterrupt.  SIGHUP is ignored where it was, as under nohup.  With several processes JAX
    has a handler for SIGTERM, which SIGUSR1 and SIGHUP are turned into.
    """
    requests = Requests()
    several = jax.process_count() > 1

    def ask(number: int, frame: Any) -> None:
        if requests.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            cli.leave_terminal()
        if several:
            signal.raise_signal(signal.SIGTERM)
        else:
            requests.signal = requests.signal or number

    others = {number for number in (signal.SIGUSR1, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN}
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # only there Python takes handlers
            for number in others if several else {signal.SIGTERM, signal.SIGINT, *others}:
                stack.callback(signal.signal, number, signal.signal(number, ask))
        yield requests
