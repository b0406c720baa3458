"""A run, made from a configuration."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Traced
from jaxtyping import Array

from lpjax import methods
from lpjax.config import named
from lpjax.config.check import require_one_of
from lpjax.config.schema import Config, DataConfig, OptimizerConfig
from lpjax.data import SOURCES
from lpjax.data.batch import Batch, Feed, steps_per_epoch
from lpjax.data.feed import make_feed
from lpjax.data.source import Data, Dataset, Source, Spec, Stream, check_labels
from lpjax.data.subset import CONSTANT, data_notes, reduced, reduced_spec
from lpjax.errors import require
from lpjax.methods.phases import Phase
from lpjax.network.network import Network, build
from lpjax.parallel.mesh import make_mesh
from lpjax.state.optim import age_factors, warmup_steps
from lpjax.state.step_inputs import StepInputs, make_step_inputs
from lpjax.state.train_state import TrainState
from lpjax.training.evaluate import Evaluate, make_evaluate


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a run needs, checked, before anything is compiled.

    Attributes:
      config: With all fields filled in; its method is that of the phase.
      given: The configuration as it was given, where what is unset is unset.
      spec: Of the data set.
      network: Cut into stages.
      mesh: The devices.
      moments: Mean and standard deviation [C] of the data set's channels; 1 for a channel that is always the same.
      notes: What is unusual about the configuration and the data, in lines for people.
      step_inputs: What a step is fed.
      num_steps: Steps to take.
      feed: The data; None in a dry run, which reads none.
      create: () -> the state before the first step.
      step: (state, batch) -> (state, metrics), the state donated.
      evaluate: (state, feed) -> test metrics.
    """

    config: Config
    given: Config
    spec: Spec
    network: Network
    mesh: Mesh
    moments: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...]
    step_inputs: StepInputs
    num_steps: int
    feed: Feed | None
    create: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    evaluate: Evaluate

    def learning_rates(self, step: int) -> dict[str, Any]:
        """Learning rates of a step, counted from 1, as metrics.jsonl has them: each stage's where they differ."""
        inputs, ages = self.step_inputs, methods.METHODS[self.config.method].ages(self.config)
        rate, factors = float(inputs.learning_rate(step - 1)), age_factors(self.config, ages, inputs.steps_per_epoch)
        by_stage = {} if factors is None else {"stage_learning_rate": [rate * f for f in factors(step - 1).tolist()]}
        return {"learning_rate": rate} | by_stage

    @property
    def data(self) -> Feed:
        """The data of a run that is not dry."""
        assert self.feed is not None, "a dry run reads no data"
        return self.feed

    def is_log_step(self, step: int) -> bool:
        """Whether the metrics of a step are written."""
        return step == self.num_steps or self._is_log_step(step)

    def _is_log_step(self, step: int) -> bool:
        due = self.is_diagnosis_step(step) or self.is_measured_step(step)
        return due or step == 1 or step % self.config.log_every == 0

    @property
    def is_diagnosed(self) -> bool:
        """Whether in some steps the stages' gradients are compared with backprop's."""
        return bool(self.config.diagnose_every) or self.config.phases.by == "cosine"

    def is_diagnosis_step(self, step: int) -> bool:
        """Whether they are in this step."""
        every = self.config.diagnose_every
        due = self.config.phases.by == "cosine" and self.is_measured_step(step)
        return due or (bool(every) and step % every == 0)

    def is_measured_step(self, step: int) -> bool:
        """Whether the indicator that ends a phase is measured."""
        phases = self.config.phases
        return phases.by != "epochs" and step % phases.every == 0

    def is_eval_step(self, step: int) -> bool:
        """Whether the network is tested after a step."""
        return step == self.num_steps or self._is_eval_step(step)

    def _is_eval_step(self, step: int) -> bool:
        every = self.config.eval.every_epochs * self.step_inputs.steps_per_epoch
        return bool(every) and step % every == 0

    def last_lines(self, step: int) -> list[str]:
        """Kinds of lines that are written because the step is the last one, and that a longer run has not."""
        due = {"train": self._is_log_step(step), "eval": self._is_eval_step(step)}
        return [kind for kind in due if step == self.num_steps and not due[kind]]

    def is_checkpoint_step(self, step: int) -> bool:
        """Whether there is a checkpoint after a step."""
        chosen = self.config.checkpoint.every_steps
        every = self.step_inputs.steps_per_epoch if chosen is None else chosen
        return step == self.num_steps or (bool(every) and step % every == 0)


def build_network(config: Config, spec: Spec) -> Network:
    """Build the network of a configuration for the images of a data set.

    Raises:
      BadInput: The configuration does not fit the images, or the network the classes.
    """
    units = named.call(config.model.function, "model.function", config.model.arguments, classes=spec.classes)
    with_aux_net = any(methods.METHODS[name].aux_net != "none" for name in config.all_methods)
    network = build(units, spec.image_shape, config, with_aux_net=with_aux_net, task=spec.task)
    outputs, expected = network.stages[-1].out_shape, (*network.label_shape, spec.classes)
    require(
        outputs == expected,
        f"model.function={config.model.function}: its outputs have shape {outputs}, expected {expected}, one "
        f"for each class of data.name={config.data.name}; correct the last unit",
    )
    return network


def _notes(config: Config, steps_per_epoch: int) -> tuple[str, ...]:
    """What is unusual about the configuration."""
    notes = []
    for name, optimizer in (("optimizer", config.optimizer), ("aux_optimizer", config.aux_optimizer)):
        steps = warmup_steps(optimizer, steps_per_epoch, config.num_epochs)
        if steps < round(optimizer.warmup_epochs * steps_per_epoch):
            whole = f"{name}.warmup_epochs={optimizer.warmup_epochs} is no shorter than the training"
            notes.append(f"{whole}: the learning rate rises over its first {steps} steps")
    return tuple(notes)


def _check_splits(config: DataConfig, source: Source) -> None:
    """Refuse fields that the source does not look at."""
    others = {"validation_examples": "data.holdout=0.1 holds a tenth of each class out to test on"}
    if not source.splits:
        others = {
            "holdout": "data.validation_examples holds training examples out",
            "test_split": "its splits are fixed",
        }
    for name, instead in others.items():
        value = getattr(config, name)
        require(value is None, f"data.{name}={value}: expected unset for data.name={config.name}; unset it: {instead}")


def _check_values(data: Data, spec: Spec, config: DataConfig) -> None:
    """Refuse moments that are not finite, and labels beyond the classes: both would be nan in the first step."""
    for name, values in (("mean", data.mean), ("std", data.std)):
        require(
            np.isfinite(values).all(),
            f"data.name={config.name}: {name} of the images is {values}: expected finite numbers; correct the data",
        )
    if isinstance(data, Dataset):
        for name, labels in (("training", data.train_labels), ("test", data.test_labels)):
            check_labels(labels, spec.classes, f"data.name={config.name}, {name} labels")


def prepare(config: Config) -> Run:
    """Build a run; compiles nothing.

    Args:
      config: Fields that depend on the method may be unset.

    Raises:
      BadInput, OSError: Naming the setting or the file at fault.
    """
    given, config = config, methods.resolve(config)
    require_one_of("data.name", config.data.name, SOURCES)
    source = SOURCES[config.data.name]
    _check_splits(config.data, source)
    spec = source.published(config.data) if config.dry_run and source.published else source.describe(config.data)
    spec = reduced_spec(spec, config.data)
    network = build_network(config, spec)
    per_epoch = steps_per_epoch(spec.num_train, config.batch_size)
    mesh = make_mesh(*config.mesh_shape)
    channels = spec.image_shape[-1]
    feed, mean, std, notes = None, np.zeros(channels), np.ones(channels), spec.notes
    if not config.dry_run:
        data = reduced(source.load(config.data), config.data)
        spec = replace(spec, cropped=isinstance(data, Stream), sha256=getattr(data, "sha256", None))
        feed, mean = make_feed(data, config, mesh), data.mean
        _check_values(data, spec, config.data)
        std = np.where(data.std < CONSTANT, 1.0, data.std)
        notes += data_notes(data, spec)
    for name in config.all_methods:
        methods.METHODS[name].check(config, spec)
    total = config.num_epochs * per_epoch
    step_inputs = make_step_inputs(
        config, mean, std, num_examples=spec.num_train, steps_per_epoch=per_epoch, task=spec.task
    )
    return Run(
        config=config,
        given=given,
        spec=spec,
        network=network,
        mesh=mesh,
        moments=(mean, std),
        notes=notes + _notes(config, per_epoch),
        step_inputs=step_inputs,
        num_steps=total if config.num_steps is None else min(config.num_steps, total),
        feed=feed,
        **_by_method(network, config, mesh, step_inputs),
    )


def _by_method(network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> dict[str, Any]:
    """What the method of a configuration makes of a run."""
    method, parts = methods.METHODS[config.method], (network, config, mesh, step_inputs)
    return {"create": method.make_create(*parts), "step": method.make_step(*parts), "evaluate": make_evaluate(*parts)}


def with_method(run: Run, method: str) -> Run:
    """The run by another method: other state and step, all else the same."""
    config = replace(run.config, method=method)
    return replace(run, config=config, **_by_method(run.network, config, run.mesh, run.step_inputs))


def in_phase(run: Run, step: int, phase: Phase) -> Run:
    """The run in the phase that comes after `step` steps, to its last step; `phase` where indicators end phases."""
    phases, per_epoch, last = run.config.phases, run.step_inputs.steps_per_epoch, run.num_steps
    if not phases.methods:
        return run
    if phases.by != "epochs":
        return with_method(run, phases.methods[phase.number])
    ends = [*(min(round(epoch * per_epoch), last) for epoch in phases.epochs), last]
    number = next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)
    return replace(with_method(run, phases.methods[number]), num_steps=ends[number])


def with_learning_rates(run: Run, factor: float) -> Run:
    """The run with all learning rates times `factor`; its step is compiled anew."""

    def scaled(optimizer: OptimizerConfig) -> OptimizerConfig:
        return replace(optimizer, learning_rate=optimizer.learning_rate * factor)

    config, before = run.config, run.step_inputs
    config = replace(config, optimizer=scaled(config.optimizer), aux_optimizer=scaled(config.aux_optimizer))
    step_inputs = make_step_inputs(
        config,
        *run.moments,
        num_examples=before.num_examples,
        steps_per_epoch=before.steps_per_epoch,
        task=run.network.task,
    )
    step = methods.METHODS[config.method].make_step(run.network, run.config, run.mesh, step_inputs)
    return replace(run, step_inputs=step_inputs, step=step)


def trace(run: Run) -> Traced:
    """Trace the step for the run's shapes."""
    B, shape = run.config.batch_size, run.spec.image_shape
    label, index = (jax.ShapeDtypeStruct((B, *own), jnp.int32) for own in (run.network.label_shape, ()))
    batch = Batch(image=jax.ShapeDtypeStruct((B, *shape), jnp.uint8), label=label, index=index)
    return run.step.trace(jax.eval_shape(run.create), batch)  # type: ignore[attr-defined]
