"""What a run says of itself while it computes: that it is alive, when it will end, its memory, where it hangs.

    with Watch(display.say, heartbeat_seconds=.., stall_seconds=..) as watch, Profile(first, last, folder) as profile:
        watch.phase("making the state")
        state = run.create()
        for step in ..:
            watch.phase(f"step {step}")      # ends the phase before it
            profile.begin(step)
            state, metrics = run.step(state, batch)
            ..                               # read the metrics
            watch.done(f"step {step}")
            profile.end(step)
            watch.printed()                  # after a line of the run's own

The first step compiles: call its phase "compiling".
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Watch(contextlib.AbstractContextManager):
    """A thread that says something when the run has been silent or has not finished anything for long."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        heartbeat_seconds: float,
        stall_seconds: float,
        more: Callable[[], str | None] = lambda: None,
        say_stack: Callable[[str], None] = _to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The thread starts with the `with` statement.

        Args:
          say: Prints a line.
          heartbeat_seconds: Of silence until a line says what is going on; 0: never (a terminal shows it anyway).
          stall_seconds: Without anything finished until that is reported, once; 0: never.
          more: What else a heartbeat line tells, such as `memory_line`.
          say_stack: Prints the main thread's stack, when it stalls.
          clock: Gives the time, in seconds.
        """
        self._say, self._more, self._say_stack, self._clock = say, more, say_stack, clock
        self._heartbeat, self._stall = heartbeat_seconds, stall_seconds
        now = clock()
        self._phase, self._finished = ("starting", now), ("nothing", now)
        self._printed, self._reported = now, False
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="watch", daemon=True)

    def phase(self, name: str) -> None:
        """Note that `name` begins."""
        self._phase = name, self._clock()

    def done(self, name: str) -> None:
        """Note that `name` is finished."""
        self._finished, self._reported = (name, self._clock()), False

    def printed(self) -> None:
        """Note that the run has printed a line itself."""
        self._printed = self._clock()

    def look(self) -> None:
        """Print what is due; the thread calls it every second."""
        now = self._clock()
        (phase, since), (last, ended) = self._phase, self._finished
        state = f"{phase}, for {duration(now - since)}; last finished: {last}"
        if self._stall and not self._reported and now - ended >= self._stall:
            self._reported, self._printed = True, now
            self._say(f"stalled? nothing has finished for {duration(now - ended)}; still in: {state}")
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            self._say_stack("main thread:\n" + "".join(traceback.format_stack(frame)))
        elif self._heartbeat and now - self._printed >= self._heartbeat:
            self._printed = now
            self._say("; ".join(filter(None, [f"still in: {state}", self._more()])))

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.look()

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def duration(seconds: float) -> str:
    """A time in words, such as "35 s", "4 min 10 s", "26 h 3 min"."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def time_left(done: int, total: int, step_seconds: Sequence[float]) -> float | None:
    """Estimate how long the rest of a run takes, evaluations and compiling not counted.

    Args:
      done: Steps done.
      total: Steps in all.
      step_seconds: Of the steps of this process so far, without those in which there was an evaluation.

    Returns:
      Seconds that steps done+1 .. total will take; None before the third step.
    """
    # The first compiles and the second waits for it; the newest ones count, since a computer may become slower.
    typical = step_seconds[2:][-100:]
    return (total - done) * float(np.median(typical)) if typical else None


def memory_line(devices: Sequence[Any] | None = None) -> str | None:
    """A line on the memory of the fullest device.

    Args:
      devices: Those to ask.  Unset: this process's.

    Returns:
      The line; None where the devices do not tell, as on a CPU.
    """
    stats = [device.memory_stats() for device in (jax.local_devices() if devices is None else devices)]
    fullest = max(filter(None, stats), key=lambda own: own["bytes_in_use"], default=None)
    if fullest is None:
        return None
    now, peak, limit = (fullest.get(name, 0) / 1e9 for name in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit"))
    of, most = f" of {limit:.2f} GB" if limit else "", f", at most {peak:.2f} GB" if peak else ""
    return f"device memory: {now:.2f} GB{of}{most}"


class Profile(contextlib.AbstractContextManager):
    """A `jax.profiler` trace of some steps, for TensorBoard or Perfetto."""

    def __init__(self, first: int | None, last: int | None, folder: Path) -> None:
        """A run that starts after `first` traces what is left of the steps.

        Args:
          first: First step of the trace, counted from 1; None for no trace.
          last: Its last step; None for no trace.
          folder: Where it goes.
        """
        self._first, self._last, self._folder = first, last, folder
        self._running = False

    def begin(self, step: int) -> None:
        """Start the trace, if it is due; call it before a step is dispatched."""
        if self._first and self._last and not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def end(self, step: int) -> None:
        """Write the trace, if it is due; call it when a step's metrics are there."""
        if self._last is not None and step >= self._last:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is being made."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def __exit__(self, *_: object) -> None:
        self.close()
