"""A run, made from a checked configuration."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered
from jaxtyping import Array
from rich.console import Console

from lpjax import named, serial, stage_parallel, train_state
from lpjax.config import Config, OptimizerConfig
from lpjax.data import SOURCES
from lpjax.data.feed import Batch, Feed, make_feed, steps_per_epoch
from lpjax.data.source import Spec, Stream
from lpjax.evaluate import Evaluation, make_evaluate
from lpjax.mesh import make_mesh
from lpjax.network import Network, build
from lpjax.recipe import Recipe, make_recipe
from lpjax.train_state import TrainState

METHODS = {"layer_parallel": stage_parallel.make_step, "serial": serial.make_step}
"""Makers of a step, by `config.method`: (network, config, mesh, recipe) -> step."""


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a run needs, checked, before anything is compiled.

    spec: of the data set.  moments: its mean and standard deviation per channel [C].
    num_steps: steps to take.
    create: () -> the state before the first step.  step: (state, batch) -> (state, figures), the state donated.
    evaluate: (state, feed) -> test figures.
    feed: the data; None in a dry run, which reads none.
    """

    config: Config
    spec: Spec
    network: Network
    mesh: Mesh
    moments: tuple[np.ndarray, np.ndarray]
    recipe: Recipe
    num_steps: int
    create: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Callable[[TrainState, Feed], Evaluation]
    feed: Feed | None

    def logs(self, step: int) -> bool:
        """Whether the figures of a step are written."""
        return step == self.num_steps or self._logs(step)

    def _logs(self, step: int) -> bool:
        return step == 1 or step % self.config.log_every == 0

    def tests(self, step: int) -> bool:
        """Whether the network is tested after a step."""
        return step == self.num_steps or self._tests(step)

    def _tests(self, step: int) -> bool:
        every = self.config.eval.every_epochs * self.recipe.steps_per_epoch
        return bool(every) and step % every == 0

    def last_lines(self, step: int) -> list[str]:
        """Kinds of lines that are written because the step is the last one, and that a longer run has not."""
        due = {"train": self._logs(step), "eval": self._tests(step)}
        return [kind for kind in due if step == self.num_steps and not due[kind]]

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint after a step."""
        chosen = self.config.checkpoint.every_steps
        every = self.recipe.steps_per_epoch if chosen is None else chosen
        return step == self.num_steps or (bool(every) and step % every == 0)


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
        moments=(mean, std),
        recipe=recipe,
        num_steps=total if config.num_steps is None else min(config.num_steps, total),
        create=partial(train_state.create, config, network, mesh, recipe),
        step=METHODS[config.method](network, config, mesh, recipe),
        evaluate=make_evaluate(network, config, mesh, recipe),
        feed=feed,
    )


def with_learning_rates(run: Run, factor: float) -> Run:
    """The run with all learning rates times `factor`; its step is compiled anew."""

    def scaled(optimizer: OptimizerConfig) -> OptimizerConfig:
        return replace(optimizer, learning_rate=optimizer.learning_rate * factor)

    config, recipe = run.config, run.recipe
    config = replace(config, optimizer=scaled(config.optimizer), aux_optimizer=scaled(config.aux_optimizer))
    recipe = make_recipe(config, *run.moments, num_examples=recipe.num_examples, steps_per_epoch=recipe.steps_per_epoch)
    return replace(run, recipe=recipe, step=METHODS[config.method](run.network, config, run.mesh, recipe))


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
