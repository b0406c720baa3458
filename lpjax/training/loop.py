"""The training loop, from a prepared run to result.json.

A checkpoint holds the arrays of `canonical` and, as JSON, its `meta`:

    identity     what decides the run's numbers, see `identity`
    feed         where the training batches of each process are
    evaluation   test metrics of this state, if it was tested
    figures      metrics of the last step
    method       that the state is of (a phase's)
    last_lines   kinds of lines of metrics.jsonl that were written because this was the run's last step
    phase        where an indicator ends phases, see `methods.phases`
    behind       where the batches are that a diagnosis still needs: how many, and where the oldest one is
    factor       of all learning rates, smaller than 1 after a recovery
    seconds      that the run took so far
    versions     of the packages

What was read from the devices, found finite, written to metrics.jsonl and put on disk comes before the checkpoint
that says so; a resumed run takes back the lines of later steps and writes them again.
"""

import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from lpjax import cli
from lpjax.data.batch import Batch, TrainBatches
from lpjax.errors import CorruptDataError
from lpjax.methods import phases
from lpjax.parallel import compilation, platform, processes
from lpjax.state.train_state import TrainState
from lpjax.training import checkpoint, identity, resume, stop, summary, workdir
from lpjax.training.diagnosis import Diagnosis
from lpjax.training.evaluate import Evaluation
from lpjax.training.log import Log, NonFiniteError, check_arrays
from lpjax.training.run import Run, in_phase, with_learning_rates
from lpjax.training.watch import Profile, Watch, memory_line


def train(run: Run, folder: Path, console: Console | None = None, *, restart: bool = False) -> dict[str, Any]:
    """Train to the run's last step from where `folder` has got, test, and write result.json; returns the result.

    Args:
      run: Not a dry one.
      folder: Its workdir.
      console: For what is shown; stdout where none is given.
      restart: Move what is in the folder aside first.

    Raises:
      WorkdirError: The folder holds another run, is in use, or none of its checkpoints is whole.
      NonFiniteError, CheckpointError, StoppedError: See there.  On any error, and on KeyboardInterrupt, result.json
        says how the run ended.
    """
    assert run.feed is not None, "a dry run reads no data"
    console = console or cli.console()
    recovery, watched, tries = run.config.recovery, run.config.watch, Counter[int]()
    say = partial(console.print, highlight=False)
    heartbeat = 0.0 if console.is_terminal else watched.heartbeat_seconds  # there the progress bar shows it
    watch = Watch(say, heartbeat_seconds=heartbeat, stall_seconds=watched.stall_seconds, more=memory_line)
    with workdir.lock_for_all(folder), stop.listening() as requests, watch, compilation.said(say):
        if restart and processes.is_writer() and (earlier := workdir.set_aside(folder)):
            say(f"files of an earlier run moved to {earlier}")
        failed: NonFiniteError | None = None
        while True:
            watch.phase("looking for a checkpoint")
            saved = resume.find(run, folder, say)
            if saved and saved.step == run.num_steps and (result := _finished(run, folder)):
                say(f"{folder} is finished already; nothing is left to train")
                return result
            watch.phase("making the state")
            phase = in_phase(run, saved.step if saved else 0, phases.saved(saved.meta if saved else {}))
            start = resume.begin(phase, saved, say)
            watch.done("the state")
            if failed:
                if tries[start.step] == recovery.times:
                    raise failed
                tries[start.step] += 1
                say(f"{failed}; going back to step {start.step} with learning rates times {recovery.factor}")
            factor = start.meta.get("factor", 1.0) * recovery.factor ** tries[start.step]
            now = phase if factor == 1 else with_learning_rates(phase, factor)
            session = _Session(now, folder, start, factor, requests, Log(now, folder, console, watch, start))
            try:
                result = session.train(recovered=tries[start.step] > 0, last=run.num_steps)
                if result["ended"] == "finished":
                    return result
                failed = None
            except NonFiniteError as error:
                if recovery.policy == "stop":
                    raise
                failed = error


def _finished(run: Run, folder: Path) -> dict[str, Any] | None:
    """The result of a run that came to its end."""
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((folder / "result.json").read_text())
        if (result.get("ended"), result.get("steps")) == ("finished", run.num_steps):
            return result
    return None


class _Session:
    """The steps of one process from a start; `factor` is the run's learning rates over the configuration's."""

    def __init__(
        self, run: Run, folder: Path, start: resume.Start, factor: float, requests: stop.Requests, log: Log
    ) -> None:
        self.run, self.folder, self.start, self.requests, self.log = run, folder, start, requests, log
        self.factor, self.phase = factor, phases.saved(start.meta)
        self.diagnosis = Diagnosis(run) if run.is_diagnosed else None
        self.behind = deque[dict[str, Any]](maxlen=self.diagnosis.lag if self.diagnosis else 0)
        tested = start.meta.get("evaluation")
        self.evaluation = Evaluation(**tested) if tested else None
        self.writer: checkpoint.Writer | None = None
        if processes.is_writer():
            self.writer = checkpoint.Writer(resume.checkpoints(folder), run.config.checkpoint)
            workdir.write_json(folder / "config.json", asdict(run.config))
            workdir.write_json(folder / "structure.json", summary.describe(run.network, run.config))

    def train(self, recovered: bool, last: int) -> dict[str, Any]:
        """Train to the phase's end; `recovered`: from a step that was gone back to, `last`: the run's last step."""
        ended, method = "error", self.run.config.method
        try:
            if recovered:
                self.log.write("recovery", self.start.step, {"factor": self.factor})
            if (before := self.start.meta.get("method", method)) != method:
                line: dict[str, Any] = {"method": method, "after": before}
                self.log.write("phase", self.start.step, line | {self.run.config.phases.by: self.phase.because})
            self._steps()
            ended = "finished" if self.log.done == last else "phase"
        except (KeyboardInterrupt, stop.StoppedError):
            ended = "interrupted"
            raise
        finally:
            with contextlib.suppress(OSError) if ended == "error" else contextlib.nullcontext():  # such as a full disk
                if self.writer:
                    self.writer.close()
                self.log.close()
                result = summary.result(self.run, ended, self.log, self.evaluation if ended == "finished" else None)
                if self.writer:
                    workdir.write_json(self.folder / "result.json", result)
        return result

    def _steps(self) -> None:
        """The metrics of step n-1 are read after step n is dispatched, so the host never holds the devices up."""
        run, log, watched, first = self.run, self.log, self.run.config.watch, self.start.step + 1
        state, batches, diagnosis = self.start.state, self._batches(), self.diagnosis
        with Profile(watched.profile_first, watched.profile_last, self.folder / "profile") as profile:
            clock = time.perf_counter()
            for step in range(first, run.num_steps + 1):
                log.watch.phase(f"step {step}" + (", which is compiled first" if step == first else ""))
                profile.begin(step)
                batch = self._next(batches)
                log.skipped(batches.corrupt)
                state, metrics = diagnosis.step(step, state, batch) if diagnosis else run.step(state, batch)
                log.read()
                profile.end(log.done)
                log.pending = step, metrics, batches.waited
                asked, measured, save = self.requests.at(step), run.is_measured_step(step), run.is_checkpoint_step(step)
                if asked or measured or save or run.is_eval_step(step):
                    log.read()
                    profile.end(step)
                    left = measured and self._is_left(step)
                    self._test_and_save(step, state, batches, save=bool(asked) or left or save)
                    if asked and step < run.num_steps:
                        raise stop.StoppedError(asked)
                    if left:
                        return
                else:
                    log.step_seconds.append(time.perf_counter() - clock)
                    log.data_seconds.append(batches.waited)
                clock = time.perf_counter()
        if self.evaluation is None:  # there was no step to take: all were taken by another run, or before a signal
            self._test_and_save(run.num_steps, state, batches, save=not self.start.meta)

    def _batches(self) -> TrainBatches:
        """The training batches from the start on; those before it that a diagnosis still needs are read again."""
        batches, feed, meta, count = self.run.data.train(), self.start.feed, self.start.meta, 0
        if self.diagnosis and meta.get("method") == self.run.config.method and "behind" in meta:
            feed, count = meta["behind"]["feed"], meta["behind"]["count"]
        if feed:
            batches.set_state(feed[jax.process_index() % len(feed)])
        for _ in range(count):
            self.diagnosis.add(self._next(batches))  # type: ignore[union-attr]
        return batches

    def _next(self, batches: TrainBatches) -> Batch:
        if self.behind.maxlen:
            self.behind.append(batches.get_state())
        return next(batches)

    def _is_left(self, step: int) -> bool:
        """Whether the method is left after a step in which the indicator that ends phases was measured."""
        settings, before = self.run.config.phases, self.phase
        value = phases.value(settings, self.log.last)
        if value is not None:
            self.phase = phases.after(before, settings, step, value, self.run.step_inputs.steps_per_epoch)
        return self.phase.number != before.number

    def _test_and_save(self, step: int, state: TrainState, batches: TrainBatches, *, save: bool) -> None:
        run, watch = self.run, self.log.watch
        self.evaluation = None
        if run.is_eval_step(step):
            watch.phase(f"the test after step {step}")
            try:
                self.evaluation = run.evaluate(state, run.data)
            except CorruptDataError:  # the training was sound, and is not to be lost
                self._save(step, state, batches)
                raise
            self.log.evaluation(step, self.evaluation)
            watch.done(f"the test after step {step}")
        if save:
            self._save(step, state, batches)

    def _save(self, step: int, state: TrainState, batches: TrainBatches) -> None:
        run, watch = self.run, self.log.watch
        watch.phase(f"the checkpoint of step {step}")
        arrays = resume.snapshot(run, state) | self.start.kept
        check_arrays(step, arrays)
        meta = {
            "identity": identity.identity(run),
            "feed": processes.gather(batches.get_state()),
            "evaluation": self.evaluation and self.evaluation._asdict(),
            "figures": self.log.last,
            "method": run.config.method,
            "last_lines": run.last_lines(step),
            **({} if run.config.phases.by == "epochs" else {"phase": asdict(self.phase)}),
            **(
                {"behind": {"count": len(self.behind), "feed": processes.gather(self.behind[0])}} if self.behind else {}
            ),
            "factor": self.factor,
            "seconds": self.log.seconds,
            "versions": platform.versions(),
        }
        if self.writer:
            self.log.sync()
            self.writer.save(step, arrays, meta, self.evaluation and self.evaluation.test_accuracy)
            if self.requests.signal or step == run.num_steps or self.evaluation is None:
                self.writer.wait()
        watch.done(f"the checkpoint of step {step}")


def evaluate(run: Run, folder: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Test the run's newest good checkpoint, and write eval.json, if the workdir can be written to.

    Args:
      run: Not a dry one.
      folder: Its workdir.
      say: Prints a line.

    Returns:
      What eval.json says.

    Raises:
      WorkdirError: There is no such checkpoint.
    """
    state, step, _ = resume.load(run, folder)
    evaluation = run.evaluate(state, run.data)
    result = {"step": step, **evaluation._asdict(), "versions": platform.versions(), "device": platform.device_name()}
    if processes.is_writer():
        try:
            workdir.write_json(folder / "eval.json", result)
            say(f"{folder}/eval.json")
        except OSError as error:
            say(f"{folder}/eval.json is not written: {error}")
    return result
