"""A run, from a checked configuration to result.json."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered
from jaxtyping import Array
from rich.console import Console

from lpjax import metrics, named, serial, stage_parallel, tables, train_state
from lpjax.config import Config
from lpjax.data import SOURCES
from lpjax.data.feed import Batch, Feed, make_feed, steps_per_epoch
from lpjax.data.source import Spec, Stream
from lpjax.evaluate import Evaluation, make_evaluate
from lpjax.mesh import make_mesh
from lpjax.network import Network, build
from lpjax.partition import chain_size
from lpjax.recipe import Recipe, make_recipe
from lpjax.train_state import TrainState


class NonFiniteError(RuntimeError):
    """A loss, violation or multiplier is no longer a number; the message names figure, stage or interface, and step."""


METHODS = {"layer_parallel": stage_parallel.make_step, "serial": serial.make_step}
"""Makers of a step, by `config.method`: (network, config, mesh, recipe) -> step."""


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a run needs, checked, before anything is compiled.

    spec: of the data set.
    num_steps: steps to take.
    create: () -> the state before the first step.  step: (state, batch) -> (state, figures), the state donated.
    evaluate: (state, feed) -> test figures.
    feed: the data; None in a dry run, which reads none.
    """

    config: Config
    spec: Spec
    network: Network
    mesh: Mesh
    recipe: Recipe
    num_steps: int
    create: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[[TrainState, Feed], Evaluation]
    feed: Feed | None


def build_network(config: Config, spec: Spec) -> Network:
    """The network of a configuration on the images of a data set."""
    return build(
        named.call(config.model.function, "model.function", config.model.arguments, classes=spec.classes),
        spec.image_shape,
        num_stages=config.num_stages,
        cuts=config.cuts,
        standardise=config.standardise,
        dtype="bfloat16" if config.bfloat16 else None,
        remat=config.remat,
        aux_function=named.load(config.aux.function, "aux.function"),
        aux_blocks=config.aux.blocks_per_stage,
        aux_width=config.aux.width,
    )


def prepare(config: Config) -> Run:
    """Build a run.

    Raises ValueError (or OSError, from reading data) naming the setting or the file at fault; compiles nothing.
    """
    if config.data.name not in SOURCES:
        raise ValueError(f"data.name={config.data.name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[config.data.name]
    spec = source.published(config.data) if config.dry_run and source.published else source.describe(config.data)
    network = build_network(config, spec)
    per_epoch = steps_per_epoch(spec.num_train, config.batch_size)
    mesh = make_mesh(*config.mesh_shape)
    if config.dry_run:
        feed, mean, std = None, np.zeros(spec.image_shape[-1]), np.ones(spec.image_shape[-1])
    else:
        data = source.load(config.data)
        if isinstance(data, Stream) and config.multiplier == "per_example":
            raise ValueError(
                f"multiplier=per_example with data.name={config.data.name}, whose images are cropped at random: a "
                f"multiplier stored per example needs the example to be the same each time; choose another multiplier"
            )
        feed, mean, std = make_feed(data, config, mesh), data.mean, data.std
    recipe = make_recipe(config, mean, std, num_examples=spec.num_train, steps_per_epoch=per_epoch)
    total = config.num_epochs * per_epoch
    return Run(
        config=config,
        spec=spec,
        network=network,
        mesh=mesh,
        recipe=recipe,
        num_steps=total if config.num_steps is None else min(config.num_steps, total),
        create=partial(train_state.create, config, network, mesh, recipe),
        step=METHODS[config.method](network, config, mesh, recipe),
        evaluate=make_evaluate(network, config, mesh, recipe),
        feed=feed,
    )


def check_finite(step: int, figures: dict[str, Any]) -> None:
    """Raises NonFiniteError for the first figure that is not finite."""
    for name, value in figures.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(value)))
        if len(bad):
            where = f" at {_place(name, int(bad[0]))}" if np.ndim(value) else ""
            raise NonFiniteError(
                f"{name}{where} is {np.ravel(value)[bad[0]]} in step {step}; lower optimizer.learning_rate or "
                f"penalty.maximum, or set optimizer.clip_norm"
            )


def _place(name: str, index: int) -> str:
    """What entry `index` of a figure is of: stages count from 0, interface j is the input of stage j >= 1."""
    return f"stage {index}" if name in ("stage_loss", "gradient_norm") else f"interface {index + 1}"


def lower(run: Run) -> Lowered:
    """The step, traced and lowered for the run's shapes."""
    B, shape = run.config.batch_size, run.spec.image_shape
    index = jax.ShapeDtypeStruct((B,), jnp.int32)
    batch = Batch(image=jax.ShapeDtypeStruct((B, *shape), jnp.uint8), label=index, index=index)
    return run.step.lower(jax.eval_shape(run.create), batch)  # type: ignore[attr-defined]


def dry_run(run: Run, console: Console) -> None:
    """Compile the step and say what it takes; nothing is trained."""
    start = time.perf_counter()
    memory = lower(run).compile().memory_analysis()
    console.print(f"compiled in {time.perf_counter() - start:.1f} s")
    if memory is not None:
        held, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        console.print(f"a device holds {held / 1e6:,.1f} MB and needs {temporary / 1e6:,.1f} MB more in a step")


def train(run: Run, workdir: Path, console: Console) -> dict[str, Any]:
    """Train, evaluate, and write metrics.jsonl, TensorBoard events and result.json to `workdir`; returns the result.

    The figures of step n-1 are read after step n is dispatched, so the host never holds the devices up.

    Raises NonFiniteError.  On KeyboardInterrupt the files are closed, result.json says "interrupted", and the
    exception goes on.
    """
    assert run.feed is not None, "a dry run reads no data"
    config, per_epoch = run.config, run.recipe.steps_per_epoch
    start = time.perf_counter()
    log = _Log(run, workdir, console)
    times = Times([], [])
    evaluation: Evaluation | None = None
    ended = "error"
    try:
        state, batches = run.create(), run.feed.train()
        pending: _Figures | None = None
        clock = time.perf_counter()
        for step in range(1, run.num_steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            log.skipped(batches.corrupt)
            state, figures = run.step(state, batch)
            if pending:
                log.step(*pending)
            pending = _Figures(step, figures, waited)
            due = config.eval.every_epochs and step % (config.eval.every_epochs * per_epoch) == 0
            if due and step < run.num_steps:
                log.step(*pending)
                pending = None
                log.evaluation(step, run.evaluate(state, run.feed))
                clock = time.perf_counter()
                continue
            now = time.perf_counter()
            times.steps.append(now - clock)
            times.data.append(waited)
            clock = now
        if pending:
            log.step(*pending)
        evaluation = run.evaluate(state, run.feed)
        log.evaluation(run.num_steps, evaluation)
        ended = "finished"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        log.close()
        result = summary(run, ended, log, evaluation, times, time.perf_counter() - start)
        metrics.write_json(workdir / "result.json", result)
    return result


class _Figures(NamedTuple):
    """What a step came to.  waited: seconds until its batch was there, T_d of METHOD's speed-up formula."""

    step: int
    figures: dict[str, Array]
    waited: float


class Times(NamedTuple):
    """Wall clock of each step not interrupted by an evaluation, in seconds: of the whole step, and of its wait for
    data."""

    steps: list[float]
    data: list[float]


class _Log:
    """Where a run's figures go.  done: the last step read.  last: its figures.  corrupt: image files skipped."""

    def __init__(self, run: Run, workdir: Path, console: Console) -> None:
        earlier = metrics.set_aside(workdir)
        if earlier:
            console.print(f"files of an earlier run moved to {earlier}")
        self._run = run
        self._writer = metrics.Writer(workdir)
        self._display = metrics.Display(console, run.num_steps, run.config.batch_size)
        self.done = 0
        self.last: dict[str, Any] = {}
        self.corrupt = 0

    def step(self, step: int, figures: dict[str, Array], waited: float) -> None:
        """Read a step's figures from the devices, check them, and show and write those that are due."""
        self.last, self.done = jax.device_get(figures), step
        check_finite(step, self.last)
        self._display.advance(step)
        if step % self._run.config.log_every == 0 or step in (1, self._run.num_steps):
            epoch = step / self._run.recipe.steps_per_epoch
            host = {"learning_rate": float(self._run.recipe.learning_rate(step - 1)), "data_seconds": waited}
            self._writer.write("train", step, epoch, self.last | host | {"corrupt_images": self.corrupt})
            self._display.show(step, epoch, self.last)

    def skipped(self, corrupt: list[str]) -> None:
        """Say which image files could not be decoded since the last call."""
        for message in corrupt[self.corrupt :]:
            self._display.say(f"skipped {message}")
        self.corrupt = len(corrupt)

    def evaluation(self, step: int, result: Evaluation) -> None:
        epoch = step / self._run.recipe.steps_per_epoch
        self._writer.write("eval", step, epoch, result._asdict())
        aux = "" if result.aux_path_accuracy is None else f", AuxNet path {result.aux_path_accuracy:.4f}"
        some = self._run.spec.num_test - result.test_examples
        damaged = f", {some} test images left out: they cannot be decoded" if some else ""
        self._display.say(f"epoch {epoch:.1f}: test accuracy {result.test_accuracy:.4f}{aux}{damaged}")

    def close(self) -> None:
        self._display.close()
        self._writer.close()


def summary(
    run: Run, ended: str, log: _Log, evaluation: Evaluation | None, times: Times, seconds_total: float
) -> dict[str, Any]:
    """result.json.

    test_*, aux_*: see `Evaluation`; null if the run did not finish.  relative_violation: per interface, of the last
    step.  seconds_per_step_median and data_seconds_median (waiting for a batch): wall clock, evaluation and the first
    (compiling) steps left out.
    """
    config, network = run.config, run.network
    per_step, per_batch = (float(np.median(t[2:])) if len(t) > 2 else None for t in times)
    figures = evaluation._asdict() if evaluation else dict.fromkeys(Evaluation._fields)
    pieces = network.aux_net if config.method == "layer_parallel" else ()
    return {
        "ended": ended,
        "method": config.method,
        "multiplier": config.multiplier if config.method == "layer_parallel" else None,
        "num_stages": config.num_stages,
        "mesh": dict(zip(("stage", "data"), config.mesh_shape, strict=True)),
        "seed": config.seed,
        **figures,
        "relative_violation": metrics.plain(log.last.get("relative_violation", [])),
        "steps": log.done,
        "epochs": log.done / run.recipe.steps_per_epoch,
        "seconds_total": seconds_total,
        "seconds_per_step_median": per_step,
        "data_seconds_median": per_batch,
        "corrupt_images": log.corrupt,
        "examples_per_second": config.batch_size / per_step if per_step else None,
        "parameters": {"stages": [chain_size(s) for s in network.stages], "aux": sum(map(chain_size, pieces))},
        "versions": tables.versions(),
        "device": tables.device_name(),
    }
