"""A run, made from a checked configuration."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered, Traced
from jaxtyping import Array

from lpjax import methods
from lpjax.config import named
from lpjax.config.schema import Config, MeshConfig, OptimizerConfig
from lpjax.data import SOURCES
from lpjax.data.batch import Batch, Feed, steps_per_epoch
from lpjax.data.feed import make_feed
from lpjax.data.source import Spec, Stream, reduced, reduced_spec
from lpjax.network.network import Network, build
from lpjax.parallel.mesh import make_mesh
from lpjax.state import train_state
from lpjax.state.step_inputs import Recipe, make_recipe
from lpjax.state.train_state import TrainState
from lpjax.training.evaluate import Evaluation, make_evaluate


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
        return step == 1 or step % self.config.log_every == 0 or self.diagnoses(step)

    def diagnoses(self, step: int) -> bool:
        """Whether the stages' gradients are compared with backprop's."""
        every = self.config.diagnose_every
        return bool(every) and step % every == 0

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
    units = named.call(config.model.function, "model.function", config.model.arguments, classes=spec.classes)
    return build(units, spec.image_shape, config)


def prepare(config: Config) -> Run:
    """Build a run.

    Raises ValueError (or OSError, from reading data) naming the setting or the file at fault; compiles nothing.
    """
    if config.data.name not in SOURCES:
        raise ValueError(f"data.name={config.data.name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[config.data.name]
    spec = source.published(config.data) if config.dry_run and source.published else source.describe(config.data)
    spec = reduced_spec(spec, config.data)
    network = build_network(config, spec)
    per_epoch = steps_per_epoch(spec.num_train, config.batch_size)
    mesh = make_mesh(*config.mesh_shape)
    if config.dry_run:
        feed, mean, std = None, np.zeros(spec.image_shape[-1]), np.ones(spec.image_shape[-1])
    else:
        data = reduced(source.load(config.data), config.data)
        if isinstance(data, Stream) and config.multiplier == "per_example":
            raise ValueError(
                f"multiplier=per_example with data.name={config.data.name}, whose images are cropped at random: a "
                f"multiplier stored per example needs the example to be the same each time; choose another multiplier"
            )
        feed, mean, std = make_feed(data, config, mesh), data.mean, data.std
    recipe = make_recipe(config, mean, std, num_examples=spec.num_train, steps_per_epoch=per_epoch)
    total = config.num_epochs * per_epoch
    if config.phases.methods:
        config = replace(config, method=config.phases.methods[0], mesh=MeshConfig(*config.mesh_shape))
    return Run(
        config=config,
        spec=spec,
        network=network,
        mesh=mesh,
        moments=(mean, std),
        recipe=recipe,
        num_steps=total if config.num_steps is None else min(config.num_steps, total),
        create=partial(train_state.create, config, network, mesh, recipe),
        step=methods.module(config.method).make_step(network, config, mesh, recipe),
        evaluate=make_evaluate(network, config, mesh, recipe),
        feed=feed,
    )


def with_method(run: Run, method: str) -> Run:
    """The run by another method: other state and step, all else the same."""
    config = replace(run.config, method=method)
    parts = config, run.network, run.mesh, run.recipe
    step = methods.module(method).make_step(run.network, config, run.mesh, run.recipe)
    return replace(run, config=config, create=partial(train_state.create, *parts), step=step)


def in_phase(run: Run, step: int) -> Run:
    """The run in the phase that comes after `step` steps (`config.phases`), to the phase's last step."""
    phases = run.config.phases
    if not phases.methods:
        return run
    ends = [min(round(epoch * run.recipe.steps_per_epoch), run.num_steps) for epoch in phases.epochs] + [run.num_steps]
    number = next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)
    return replace(with_method(run, phases.methods[number]), num_steps=ends[number])


def with_learning_rates(run: Run, factor: float) -> Run:
    """The run with all learning rates times `factor`; its step is compiled anew."""

    def scaled(optimizer: OptimizerConfig) -> OptimizerConfig:
        return replace(optimizer, learning_rate=optimizer.learning_rate * factor)

    config, recipe = run.config, run.recipe
    config = replace(config, optimizer=scaled(config.optimizer), aux_optimizer=scaled(config.aux_optimizer))
    recipe = make_recipe(config, *run.moments, num_examples=recipe.num_examples, steps_per_epoch=recipe.steps_per_epoch)
    return replace(
        run, recipe=recipe, step=methods.module(config.method).make_step(run.network, config, run.mesh, recipe)
    )


def trace(run: Run) -> Traced:
    """The step, traced for the run's shapes."""
    B, shape = run.config.batch_size, run.spec.image_shape
    index = jax.ShapeDtypeStruct((B,), jnp.int32)
    batch = Batch(image=jax.ShapeDtypeStruct((B, *shape), jnp.uint8), label=index, index=index)
    return run.step.trace(jax.eval_shape(run.create), batch)  # type: ignore[attr-defined]


def lower(run: Run) -> Lowered:
    """The step, traced and lowered for the run's shapes."""
    return trace(run).lower()
