"""What a run says while it trains: its metrics, as lines, events and text."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lpjax.errors import Error
from lpjax.methods import METHODS
from lpjax.parallel import processes
from lpjax.state.canonical import Arrays
from lpjax.training import log, writers
from lpjax.training.evaluate import Evaluation
from lpjax.training.resume import Start
from lpjax.training.run import Run
from lpjax.training.watch import Watch, duration, time_left
from lpjax.training.workdir import prune
from lpjax.training.writers import plain

_REMEDY = "lower optimizer.learning_rate or penalty.maximum, or set optimizer.clip_norm, or recovery.policy=reduce"


DIAGNOSED = {"gradient_cosine": "stage", "gradient_ratio": "stage"}
"""Metrics that a diagnosed step has beside its method's, and what a list of each runs over."""


class NonFiniteError(Error, RuntimeError):
    """A loss, violation or multiplier is not finite; the message names metric, stage or interface, and step."""

    exit_code = 3


class StepMetrics(NamedTuple):
    """What a step came to.

    Attributes:
      step: Its number.
      metrics: By name, on the devices.
      waited: Seconds that it waited for data (`TrainBatches`).
    """

    step: int
    metrics: dict[str, Array]
    waited: float


class Times(NamedTuple):
    """Wall clock of the steps not interrupted by an evaluation or a checkpoint, in seconds.

    Attributes:
      steps: Of each whole step.
      data: Of its wait for data.
    """

    steps: list[float]
    data: list[float]


class Log:
    """Where a run's metrics go, on the process that writes; the others only read and check them.

    Attributes:
      done: The last step read.
      last: Its metrics.
      corrupt: Image files skipped.
      times: Of this process's steps.
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
        done = start.step
        self._run, self._axes = run, METHODS[run.config.method].metrics | DIAGNOSED
        self._began = time.perf_counter() - start.meta.get("seconds", 0.0)
        self._display = log.Display(console, run.num_steps, run.config.batch_size, done)
        self.done = done
        self.last: dict[str, Any] = start.meta.get("figures", {})
        self.corrupt = 0
        self.times = Times([], [])
        self.watch = watch

        not_last = [] if done == run.num_steps else start.meta.get("last_lines", [])

        def stays(line: dict[str, Any]) -> bool:
            return line["step"] < done or (line["step"] == done and line["kind"] not in ("recovery", *not_last))

        if processes.is_writer():
            prune(workdir, stays)
        self._writer = writers.Writer(workdir, done) if processes.is_writer() else writers.Nowhere()

    @property
    def seconds(self) -> float:
        """Seconds that the run took so far, of all processes that carried it on."""
        return time.perf_counter() - self._began

    def _epoch(self, step: int) -> float:
        return step / self._run.step_inputs.steps_per_epoch

    def _write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        self._writer.write(kind, step, self._epoch(step), {**metrics, "seconds": self.seconds})

    def step(self, step: int, metrics: dict[str, Array], waited: float) -> None:
        """Read a step's metrics from the devices, check them, and show and write those that are due.

        Args:
          step: The step.
          metrics: By name, on the devices.
          waited: Seconds that it waited for data.

        Raises:
          NonFiniteError: One is not finite.
        """
        read = jax.device_get(metrics)
        check_finite(step, read, self._axes)
        self.last, self.done = {name: writers.plain(value) for name, value in read.items()}, step
        self.watch.done(f"step {step}")
        processes.reached(f"after step {step}")
        self._display.advance(step)
        if self._run.is_log_step(step):
            host = {"learning_rate": float(self._run.step_inputs.learning_rate(step - 1)), "data_seconds": waited}
            self._write("train", step, self.last | host | {"corrupt_images": self.corrupt})
            self._display.show(
                step, self._epoch(step), self.last, time_left(step, self._run.num_steps, self.times.steps)
            )
            self.watch.printed()

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
        self._write("eval", step, result._asdict())
        aux = "" if result.aux_path_accuracy is None else f", AuxNet path {result.aux_path_accuracy:.4f}"
        some = self._run.spec.num_test - result.test_examples
        damaged = f", {some} test images left out: they cannot be decoded" if some else ""
        self.say(f"epoch {self._epoch(step):.1f}: test accuracy {result.test_accuracy:.4f}{aux}{damaged}")

    def recovery(self, step: int, factor: float) -> None:
        """Write that step sizes were made smaller.

        Args:
          step: After which they are.
          factor: All learning rates over the configuration's.
        """
        self._write("recovery", step, {"factor": factor})

    def say(self, text: str) -> None:
        """Print a line of text."""
        self._display.say(text)
        self.watch.printed()

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        self._writer.sync()

    def close(self) -> None:
        """Close the files, and leave the terminal as it was."""
        self._display.close()
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
            raise NonFiniteError(f"{name}{where} is {np.ravel(value)[bad[0]]} in step {step}; {_REMEDY}")


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


class Display:
    """A progress bar on a terminal, plain lines elsewhere: loss, accuracy, violation, examples per second."""

    def __init__(self, console: Console, num_steps: int, batch_size: int, done: int = 0) -> None:
        """Start the progress bar, on a terminal.

        Args:
          console: Where to show.
          num_steps: Of the run.
          batch_size: Examples of a step.
          done: Steps done before.
        """
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
        """Show that `step` steps are done."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def show(self, step: int, epoch: float, metrics: Mapping[str, Any], seconds_left: float | None) -> None:
        """Show the metrics of a training step, and about how long the others will take.

        Args:
          step: The step.
          epoch: The passes over the training set at its end.
          metrics: By name, on the host.
          seconds_left: Until the end; None where that is not known.
        """
        now, (before, last) = time.perf_counter(), self._clock
        self._clock = now, step
        rate = (step - last) * self._batch_size / max(now - before, 1e-9)
        violation = (
            max(plain(metrics["relative_violation"]), default=math.nan) if "relative_violation" in metrics else None
        )
        parts = [f"loss {float(metrics['task_loss']):.4f}", f"accuracy {float(metrics['accuracy']):.3f}"]
        parts += [f"violation {violation:.3f}"] if violation is not None else []
        parts += [f"{rate:,.0f} examples/s"]
        parts += [f"{duration(seconds_left)} left"] if seconds_left is not None and not self._progress else []
        text = "  ".join(parts)
        if self._progress:
            self._progress.update(self._task, description=text)
        else:
            self._console.print(f"step {step}/{self._num_steps}  epoch {epoch:.1f}  {text}", highlight=False)

    def say(self, text: str) -> None:
        """Print a line of text."""
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress:
            self._progress.stop()
