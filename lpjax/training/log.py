"""What a run says while it trains: its metrics, as lines, events and text."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lpjax.cli import printable
from lpjax.errors import Error
from lpjax.methods import METHODS
from lpjax.parallel import processes
from lpjax.state.canonical import Arrays
from lpjax.training.evaluate import Evaluation, in_words
from lpjax.training.resume import Start
from lpjax.training.run import Run
from lpjax.training.watch import Watch, duration, time_left
from lpjax.training.workdir import Writer, plain

_FIRST = (
    "before any update, so it is not the learning rate: look at the outputs of the network's last unit and at the "
    "units' initial values, and at the images and labels of a data source of your own"
)
_REMEDY = "lower optimizer.learning_rate or penalty.maximum, or set optimizer.clip_norm, or recovery.policy=reduce"


DIAGNOSED = {"gradient_cosine": "stage", "gradient_ratio": "stage"}
"""Metrics that a diagnosed step has beside its method's, and what a list of each runs over."""


class NonFiniteError(Error, RuntimeError):
    """A loss, violation or multiplier is not finite; the message names metric, stage or interface, and step."""

    exit_code = 3


class Log:
    """Where a run's metrics go, on the process that writes; the others only read and check them.

    On a terminal there is a progress bar, elsewhere plain lines: loss, accuracy, violation, examples per second.

    Attributes:
      done: The last step read.
      pending: A step whose metrics were not read yet: its number, the metrics on the devices, and the seconds that it
        waited for data (`TrainBatches`).
      last: Metrics of the last step read.
      corrupt: Image files skipped.
      step_seconds: Wall clock of this process's steps that no evaluation or checkpoint interrupted.
      data_seconds: Of each of them, its wait for data.
      watch: Is told what is done.
    """

    def __init__(self, run: Run, workdir: Path, console: Console, watch: Watch, start: Start) -> None:
        """Open the files, and take back the lines of steps after the start.

        Args:
          run: The run.
          workdir: Its folder.
          console: For what is shown.
          watch: Is told what is done.
          start: Where the run starts.
        """
        done, now = start.step, time.perf_counter()
        self.done, self.corrupt, self.watch = done, 0, watch
        self.pending: tuple[int, dict[str, Array], float] | None = None
        self.last: dict[str, Any] = start.meta.get("figures", {})
        self.step_seconds: list[float] = []
        self.data_seconds: list[float] = []
        self._run, self._axes, self._console = run, METHODS[run.config.method].metrics | DIAGNOSED, console
        self._began, self._shown = now - start.meta.get("seconds", 0.0), (now, done)
        method, ages = run.config.method, METHODS[run.config.method].ages(run.config)[-1]
        before = start.step if start.meta.get("method", method) != method else 0  # another phase begins with no batches
        self._partial = before + max(age.entered // len(ages) for age in ages)  # the last step without a whole batch

        not_last = [] if done == run.num_steps else start.meta.get("last_lines", [])

        def stays(line: dict[str, Any]) -> bool:
            return line["step"] < done or (
                line["step"] == done and line["kind"] not in ("recovery", "phase", *not_last)
            )

        self._writer = Writer(workdir, done, stays) if processes.is_writer() else None
        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("compiling", total=run.num_steps, completed=done)
        self._progress.start()

    @property
    def seconds(self) -> float:
        """Seconds that the run took so far, of all processes that carried it on."""
        return time.perf_counter() - self._began

    def _epoch(self, step: int) -> float:
        return step / self._run.step_inputs.steps_per_epoch

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line of a step, see `workdir.Writer`."""
        if self._writer:
            self._writer.write(kind, step, self._epoch(step), {**metrics, "seconds": self.seconds})

    def read(self) -> None:
        """Read the metrics of the pending step, if there is one, check them, and show and write those that are due.

        Raises:
          NonFiniteError: One is not finite.
        """
        if self.pending is None:
            return
        (step, metrics, waited), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        check_finite(step, metrics, self._axes)
        self.last, self.done = {name: plain(value) for name, value in metrics.items()}, step
        self.watch.done(f"step {step}")
        processes.reached(f"after step {step}")
        self._progress.update(self._task, completed=step)
        if self._run.is_log_step(step):
            host = self._run.learning_rates(step) | {"data_seconds": waited}
            self.write("train", step, self.last | self._more(step) | host | {"corrupt_images": self.corrupt})
            self._show(step)
            self.watch.printed()

    def _more(self, step: int) -> dict[str, float]:
        """What the task tells of the loss; nothing while the last stage has had no whole batch."""
        return {} if step <= self._partial else self._run.network.task.metrics(self.last["task_loss"])

    def _show(self, step: int) -> None:
        """Show the metrics of a training step, and without a progress bar about how long the others will take."""
        run, now, (before, last) = self._run, time.perf_counter(), self._shown
        self._shown = now, step
        rate = (step - last) * run.config.batch_size / max(now - before, 1e-9)
        parts = [f"loss {self.last['task_loss']:.4f}", f"accuracy {self.last['accuracy']:.3f}"]
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in self._more(step).items()]
        if "relative_violation" in self.last:
            parts.append(f"violation {max(self.last['relative_violation'], default=math.nan):.3f}")
        parts.append(f"{rate:,.0f} examples/s")
        if not self._progress.disable:
            self._progress.update(self._task, description="  ".join(parts))
            return
        left = time_left(step, run.num_steps, self.step_seconds)
        parts += [] if left is None else [f"{duration(left)} left"]
        self.say(f"step {step}/{run.num_steps}  epoch {self._epoch(step):.1f}  {'  '.join(parts)}")

    def skipped(self, corrupt: list[str]) -> None:
        """Say which image files could not be decoded since the last call.

        Args:
          corrupt: A message for each since the process started.
        """
        for message in corrupt[self.corrupt :]:
            self.say(f"skipped {message}")
        self.corrupt = len(corrupt)

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Write and show the test metrics after a step."""
        self.write("eval", step, result._asdict())
        some = self._run.spec.num_test - result.test_examples
        such_as = "".join(f", such as {message}" for message in self._run.data.corrupt[:1])
        damaged = f", {some} test images left out: they cannot be decoded{such_as}" if some else ""
        self.say(f"epoch {self._epoch(step):.1f}: {in_words(result._asdict())}{damaged}")

    def say(self, text: str) -> None:
        """Print a line of text."""
        self._console.print(printable(text), highlight=False)
        self.watch.printed()

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        if self._writer:
            self._writer.sync()

    def close(self) -> None:
        """Close the files, and leave the terminal as it was."""
        if not self._progress.disable:
            self._progress.stop()
        if self._writer:
            self._writer.close()


def check_finite(step: int, metrics: dict[str, Any], axes: Mapping[str, str]) -> None:
    """Check that a step's metrics are finite.

    Args:
      step: That they are of.
      metrics: By name, on the host.
      axes: What a list of each runs over, see `Method.metrics`.

    Raises:
      NonFiniteError: For the first metric that is not.
    """
    for name, value in metrics.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(value)))
        if len(bad):
            where = f" at {_place(axes.get(name, ''), int(bad[0]))}" if np.ndim(value) else ""
            raise NonFiniteError(
                f"{name}{where} is {np.ravel(value)[bad[0]]} in step {step}; {_REMEDY if step > 1 else _FIRST}"
            )


def check_arrays(step: int, arrays: Arrays) -> None:
    """Check that the arrays of a state are finite: another one is not to be kept.

    Args:
      step: After which the state is of.
      arrays: By name.

    Raises:
      NonFiniteError: For the first array that is not.
    """
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NonFiniteError(f"{name} is not finite after step {step}; {_REMEDY}")


def _place(axis: str, index: int) -> str:
    """What entry `index` of a metric is of: stages count from 0, interface j is the input of stage j >= 1."""
    return f"interface {index + 1}" if axis == "interface" else f"{axis or 'entry'} {index}"
