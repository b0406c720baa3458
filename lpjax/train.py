"""A run, from a checked configuration to result.json."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from rich.console import Console

from lpjax import metrics, serial, stage_parallel, tables, train_state
from lpjax.config import Config
from lpjax.data import SOURCES, Dataset, Source
from lpjax.data.feed import Batch, steps_per_epoch, train_batches
from lpjax.evaluate import Evaluation, make_evaluate
from lpjax.mesh import make_mesh
from lpjax.models.resnet import resnet
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

    num_steps: steps to take.
    create: () -> the state before the first step.  step: (state, batch) -> (state, figures), the state donated.
    evaluate: state -> test figures.
    """

    config: Config
    source: Source
    network: Network
    mesh: Mesh
    dataset: Dataset
    recipe: Recipe
    num_steps: int
    create: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[[TrainState], Evaluation]

    def batches(self) -> Iterator[Batch]:
        """The batches of the run's steps, from the first."""
        config = self.config
        return train_batches(
            self.dataset, self.mesh, seed=config.seed, batch_size=config.batch_size, num_steps=self.num_steps
        )


def build_network(config: Config, source: Source) -> Network:
    """The network of a configuration on the images of a source."""
    return build(
        resnet(depth=config.model.depth, width=config.model.width, classes=source.classes),
        source.image_shape,
        num_stages=config.num_stages,
        cuts=config.cuts,
        standardise=config.standardise,
        aux_blocks=config.aux.blocks_per_stage,
        aux_width=config.aux.width,
    )


def prepare(config: Config) -> Run:
    """Build a run.

    Raises ValueError (or OSError, from reading data) naming the setting at fault; compiles nothing.
    """
    if config.data.name not in SOURCES:
        raise ValueError(f"data.name={config.data.name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[config.data.name]
    network = build_network(config, source)
    per_epoch = steps_per_epoch(source.num_train, config.batch_size)
    mesh = make_mesh(*config.mesh_shape)
    dataset = source.load(config.data.dir)
    recipe = make_recipe(config, dataset, steps_per_epoch=per_epoch)
    total = config.num_epochs * per_epoch
    return Run(
        config=config,
        source=source,
        network=network,
        mesh=mesh,
        dataset=dataset,
        recipe=recipe,
        num_steps=total if config.num_steps is None else min(config.num_steps, total),
        create=partial(train_state.create, config, network, mesh, recipe),
        step=METHODS[config.method](network, config, mesh, recipe),
        evaluate=make_evaluate(network, config, mesh, dataset, recipe.normalised),
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


def dry_run(run: Run, console: Console) -> None:
    """Compile the step and say what it takes; nothing is trained."""
    state = jax.eval_shape(run.create)
    B, shape = run.config.batch_size, run.source.image_shape
    index = jax.ShapeDtypeStruct((B,), jnp.int32)
    batch = Batch(image=jax.ShapeDtypeStruct((B, *shape), jnp.uint8), label=index, index=index)
    start = time.perf_counter()
    compiled = run.step.lower(state, batch).compile()  # type: ignore[attr-defined]
    memory = compiled.memory_analysis()
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
    config, per_epoch = run.config, run.recipe.steps_per_epoch
    start = time.perf_counter()
    log = _Log(run, workdir, console)
    seconds: list[float] = []
    evaluation: Evaluation | None = None
    ended = "error"
    try:
        state = run.create()
        pending: tuple[int, dict[str, Array]] | None = None
        clock = time.perf_counter()
        for step, batch in enumerate(run.batches(), 1):
            state, figures = run.step(state, batch)
            if pending:
                log.step(*pending)
            pending = step, figures
            due = config.eval.every_epochs and step % (config.eval.every_epochs * per_epoch) == 0
            if due and step < run.num_steps:
                log.step(*pending)
                pending = None
                log.evaluation(step, run.evaluate(state))
                clock = time.perf_counter()
                continue
            now = time.perf_counter()
            seconds.append(now - clock)
            clock = now
        if pending:
            log.step(*pending)
        evaluation = run.evaluate(state)
        log.evaluation(run.num_steps, evaluation)
        ended = "finished"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        log.close()
        result = summary(run, ended, log.done, log.last, evaluation, seconds, time.perf_counter() - start)
        metrics.write_json(workdir / "result.json", result)
    return result


class _Log:
    """Where a run's figures go.  done: the last step read.  last: its figures."""

    def __init__(self, run: Run, workdir: Path, console: Console) -> None:
        earlier = metrics.set_aside(workdir)
        if earlier:
            console.print(f"files of an earlier run moved to {earlier}")
        self._run = run
        self._writer = metrics.Writer(workdir)
        self._display = metrics.Display(console, run.num_steps, run.config.batch_size)
        self.done = 0
        self.last: dict[str, Any] = {}

    def step(self, step: int, figures: dict[str, Array]) -> None:
        """Read a step's figures from the devices, check them, and show and write those that are due."""
        self.last, self.done = jax.device_get(figures), step
        check_finite(step, self.last)
        self._display.advance(step)
        if step % self._run.config.log_every == 0 or step in (1, self._run.num_steps):
            epoch = step / self._run.recipe.steps_per_epoch
            rate = {"learning_rate": float(self._run.recipe.learning_rate(step - 1))}
            self._writer.write("train", step, epoch, self.last | rate)
            self._display.show(step, epoch, self.last)

    def evaluation(self, step: int, result: Evaluation) -> None:
        epoch = step / self._run.recipe.steps_per_epoch
        self._writer.write("eval", step, epoch, result._asdict())
        aux = "" if result.aux_path_accuracy is None else f", AuxNet path {result.aux_path_accuracy:.4f}"
        self._display.say(f"epoch {epoch:.1f}: test accuracy {result.test_accuracy:.4f}{aux}")

    def close(self) -> None:
        self._display.close()
        self._writer.close()


def summary(
    run: Run,
    ended: str,
    steps: int,
    last: dict[str, Any],
    evaluation: Evaluation | None,
    seconds: list[float],
    seconds_total: float,
) -> dict[str, Any]:
    """result.json.

    test_*, aux_*: see `Evaluation`; null if the run did not finish.  relative_violation: per interface, of the last
    step.  seconds_per_step_median: wall clock, evaluation and the first (compiling) steps left out.
    """
    config, network = run.config, run.network
    per_step = float(np.median(seconds[2:])) if len(seconds) > 2 else None
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
        "relative_violation": metrics.plain(last.get("relative_violation", [])),
        "steps": steps,
        "epochs": steps / run.recipe.steps_per_epoch,
        "seconds_total": seconds_total,
        "seconds_per_step_median": per_step,
        "examples_per_second": config.batch_size / per_step if per_step else None,
        "parameters": {"stages": [chain_size(s) for s in network.stages], "aux": sum(map(chain_size, pieces))},
        "versions": tables.versions(),
        "device": tables.device_name(),
    }
