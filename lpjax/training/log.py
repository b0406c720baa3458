"""What a run says: figures as they come, and result.json at its end."""

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
"""What a diagnosed step has beside its method's metrics."""


class NonFiniteError(Error, RuntimeError):
    """A loss, violation or multiplier is no longer a number; the message names figure, stage or interface, and step."""

    exit_code = 3


class Figures(NamedTuple):
    """What a step came to.  waited: seconds that it waited for data (`TrainBatches`)."""

    step: int
    figures: dict[str, Array]
    waited: float


class Times(NamedTuple):
    """Wall clock of each step not interrupted by an evaluation or a checkpoint, in seconds: of the whole step, and of
    its wait for data."""

    steps: list[float]
    data: list[float]


class Log:
    """Where a run's figures go, on the process that writes; the others only read and check them.

    done: the last step read.  last: its figures.  corrupt: image files skipped.
    """

    def __init__(self, run: Run, workdir: Path, console: Console, watch: Watch, start: Start) -> None:
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
        """That the run took so far, of all processes that carried it on."""
        return time.perf_counter() - self._began

    def _epoch(self, step: int) -> float:
        return step / self._run.step_inputs.steps_per_epoch

    def _write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        self._writer.write(kind, step, self._epoch(step), {**figures, "seconds": self.seconds})

    def step(self, step: int, figures: dict[str, Array], waited: float) -> None:
        """Read a step's figures from the devices, check them, and show and write those that are due.

        Raises NonFiniteError.
        """
        read = jax.device_get(figures)
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
        """Say which image files could not be decoded since the last call."""
        for message in corrupt[self.corrupt :]:
            self.say(f"skipped {message}")
        self.corrupt = len(corrupt)

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Write and show the test figures after a step."""
        self._write("eval", step, result._asdict())
        aux = "" if result.aux_path_accuracy is None else f", AuxNet path {result.aux_path_accuracy:.4f}"
        some = self._run.spec.num_test - result.test_examples
        damaged = f", {some} test images left out: they cannot be decoded" if some else ""
        self.say(f"epoch {self._epoch(step):.1f}: test accuracy {result.test_accuracy:.4f}{aux}{damaged}")

    def recovery(self, step: int, factor: float) -> None:
        """A step size made smaller after `step`: all learning rates are now `factor` of the configuration's."""
        self._write("recovery", step, {"factor": factor})

    def say(self, text: str) -> None:
        """A line of text."""
        self._display.say(text)
        self.watch.printed()

    def sync(self) -> None:
        """Until what was written is on disk."""
        self._writer.sync()

    def close(self) -> None:
        """No more figures come."""
        self._display.close()
        self._writer.close()


def check_finite(step: int, metrics: dict[str, Any], axes: Mapping[str, str]) -> None:
    """Raises NonFiniteError for the first metric that is not finite.

    Args:
      step: That they are of.
      metrics: By name.
      axes: What a list of each runs over, see `Method.metrics`.
    """
    for name, value in metrics.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(value)))
        if len(bad):
            where = f" at {_place(axes.get(name, ''), int(bad[0]))}" if np.ndim(value) else ""
            raise NonFiniteError(f"{name}{where} is {np.ravel(value)[bad[0]]} in step {step}; {_REMEDY}")


def check_arrays(step: int, arrays: Arrays) -> None:
    """Raises NonFiniteError for the first array of a state that is not finite: such a state is not to be kept."""
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NonFiniteError(f"{name} is not finite after step {step}; {_REMEDY}")


def _place(axis: str, index: int) -> str:
    """What entry `index` of a metric is of: stages count from 0, interface j is the input of stage j >= 1."""
    return f"interface {index + 1}" if axis == "interface" else f"{axis or 'entry'} {index}"


class Display:
    """A progress bar on a terminal, plain lines elsewhere: loss, accuracy, violation, examples per second."""

    def __init__(self, console: Console, num_steps: int, batch_size: int, done: int = 0) -> None:
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
        """`step` steps are done."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def show(self, step: int, epoch: float, figures: Mapping[str, Any], seconds_left: float | None) -> None:
        """The figures of a training step, and about how long the others will take."""
        now, (before, last) = time.perf_counter(), self._clock
        self._clock = now, step
        rate = (step - last) * self._batch_size / max(now - before, 1e-9)
        violation = (
            max(plain(figures["relative_violation"]), default=math.nan) if "relative_violation" in figures else None
        )
        parts = [f"loss {float(figures['task_loss']):.4f}", f"accuracy {float(figures['accuracy']):.3f}"]
        parts += [f"violation {violation:.3f}"] if violation is not None else []
        parts += [f"{rate:,.0f} examples/s"]
        parts += [f"{duration(seconds_left)} left"] if seconds_left is not None and not self._progress else []
        text = "  ".join(parts)
        if self._progress:
            self._progress.update(self._task, description=text)
        else:
            self._console.print(f"step {step}/{self._num_steps}  epoch {epoch:.1f}  {text}", highlight=False)

    def say(self, text: str) -> None:
        """A line of text."""
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress:
            self._progress.stop()
