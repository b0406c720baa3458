"""Loss and accuracy on held-out examples: of the composed network, of the AuxNet path, of the AuxNet's own head.

Batch-norm statistics gathered in layer-parallel training belong to the AuxNet's inputs and are wrong for the composed
network.  So before an evaluation they are recalibrated: the mean of the batch statistics of composed forward passes
over some training batches, augmented and with dropout as in training, for every method alike.  (Weights are fitted to
the statistics of such batches: those of images that are not augmented cost up to 6 points of accuracy on CIFAR-10.)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from lpjax.config.schema import Config
from lpjax.data.batch import Batch, Feed
from lpjax.methods import METHODS
from lpjax.network import aux_net
from lpjax.network.network import Network, composed
from lpjax.nn import chain
from lpjax.nn.losses import PerExample
from lpjax.parallel import mesh as meshes
from lpjax.state.step_inputs import StepInputs, example_keys, paired
from lpjax.state.train_state import TrainState

TOP5_ABOVE = 20
"""With more classes than these there is a top-5 accuracy."""


class Evaluation(NamedTuple):
    """Test metrics of a state: losses in nats, accuracies in 0..1.

    Attributes:
      test_loss: Of the composed network without AuxNet, with recalibrated statistics.
      test_accuracy: Likewise: THE accuracy.  Loss and accuracies are means over all predictions (`losses.Task`).
      aux_path_accuracy: Of the last stage on the AuxNet's lambda_{K-1}, with running statistics: what training sees.
        None without AuxNet.
      aux_head_accuracy: Of the AuxNet by itself with its own head.  None without AuxNet.
      test_examples: How many; fewer than the split has where image files cannot be decoded.
      test_top5_accuracy: Whether the label is among the five largest logits of the composed network.  None with at most
        `TOP5_ABOVE` classes.
      ema_loss: As `test_loss`, of the moving average of the weights, with statistics of its own.  None without one.
      ema_accuracy: Likewise.
      ema_top5_accuracy: Likewise.
      test_perplexity: Of the next byte, exp of test_loss.  None where that is not the task.
      test_bits_per_byte: Likewise, test_loss in bits.
      test_prompt: The start of a window of the test set, with `eval.sample`.
      test_sample: What the composed network went on with.
    """

    test_loss: float
    test_accuracy: float
    aux_path_accuracy: float | None
    aux_head_accuracy: float | None
    test_examples: int
    test_top5_accuracy: float | None = None
    ema_loss: float | None = None
    ema_accuracy: float | None = None
    ema_top5_accuracy: float | None = None
    test_perplexity: float | None = None
    test_bits_per_byte: float | None = None
    test_prompt: str | None = None
    test_sample: str | None = None


def in_words(metrics: Mapping[str, Any]) -> str:
    """The accuracies of an `Evaluation`, given by name, in a line of text."""
    names = {"test_accuracy": "test accuracy", "test_top5_accuracy": "top-5", "ema_accuracy": "of averaged weights"}
    names |= {"ema_top5_accuracy": "top-5", "aux_path_accuracy": "AuxNet path", "test_bits_per_byte": "bits per byte"}
    return ", ".join(f"{word} {metrics[name]:.4f}" for name, word in names.items() if metrics.get(name) is not None)


Calibrate = Callable[[TrainState, Feed], tuple[PyTree, ...]]
"""(state, of replicated parameters, data) -> batch-norm statistics, one tree a stage."""

Sample = Callable[[TrainState, tuple[PyTree, ...], Feed], dict[str, str]]
"""(replicated state, its calibrated statistics, data) -> `Evaluation.test_prompt` and test_sample, if asked for."""

Evaluate = Callable[[TrainState, Feed], Evaluation]
"""(state, data) -> its test metrics."""


def _on_mesh(mesh: Mesh, function: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch], Any]:
    """`function` with what it is given replicated and the examples split over the whole mesh."""
    specs = (meshes.REPLICATED, meshes.EXAMPLES)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=meshes.REPLICATED, check_vma=False))


def make_calibrate(network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> Calibrate:
    """Make the function that finds the composed network's batch-norm statistics.

    Args:
      network: The network.
      config: Says how many training batches they are taken from.
      mesh: The devices.
      step_inputs: What a step is fed.

    Returns:
      See `Calibrate`.
    """

    @partial(_on_mesh, mesh)
    def calibrate(state: TrainState, batch: Batch) -> tuple[PyTree, ...]:
        """The batch's statistics in the composed network."""
        trees, old = network.params.unpack_all(state.stage_params), network.stats.unpack_all(state.stage_stats)
        keys = example_keys(state.key, jnp.zeros_like(state.step), batch.index)
        mode = chain.Mode(train=True, axes=meshes.ALL_AXES, keys=keys)
        x = step_inputs.network_input(paired(config, batch), keys)
        return composed(network, trees, old, x, mode)[1]

    def mean(state: TrainState, feed: Feed) -> tuple[PyTree, ...]:
        # One by one: several CPU processes with many collectives under way were seen to wait for each other forever.
        batches = feed.sample(config.eval.calibration_batches)
        stats = [jax.block_until_ready(calibrate(state, batch)) for batch in batches]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *stats)

    return mean


def replicated(state: TrainState, mesh: Mesh) -> TrainState:
    """Put what an evaluation needs of a state on every device."""
    state = replace(state, stage_opt=(), aux_opt=(), multiplier=(), carry=())
    return jax.device_put(state, NamedSharding(mesh, meshes.REPLICATED))


def with_average(state: TrainState) -> TrainState:
    """The state with the moving average of its weights in their place."""
    return replace(state, stage_params=state.ema, ema=())


def make_sample(network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> Sample:
    """Make the function that lets a network of text go on with a window of the test set.

    Args:
      network: The network.
      config: Says how many bytes.
      mesh: The devices.
      step_inputs: What a step is fed.

    Returns:
      See `Sample`.
    """
    length = network.chain.in_shape[0]
    begin = max(1, length // 4)
    end = min(begin + config.eval.sample, length)

    @partial(_on_mesh, mesh)
    def going_on(args: tuple[TrainState, tuple[PyTree, ...]], batch: Batch) -> Array:
        """The batch's first example, with tokens drawn in the place of those from `begin` to `end`."""
        state, calibrated = args
        trees = network.params.unpack_all(state.stage_params)

        def draw(i: Array, x: Array) -> Array:
            logits = composed(network, trees, calibrated, step_inputs.normalised(x), chain.Mode(train=False))[0]
            key = jax.random.fold_in(jax.random.key(config.seed), i)
            return x.at[0, i].set(jax.random.categorical(key, logits[0, i - 1]).astype(x.dtype))

        x = lax.fori_loop(begin, end, draw, batch.image[:1])[0].astype(jnp.int32)
        return lax.psum(jnp.where(lax.axis_index(meshes.ALL_AXES) == 0, x, 0), meshes.ALL_AXES)

    def sample(state: TrainState, calibrated: tuple[PyTree, ...], feed: Feed) -> dict[str, str]:
        if network.task.images or not config.eval.sample:
            return {}
        tokens = bytes(jax.device_get(going_on((state, calibrated), next(feed.test()))).tolist())
        parts = {"test_prompt": tokens[:begin], "test_sample": tokens[begin:end]}
        return {name: part.decode(errors="replace") for name, part in parts.items()}

    return sample


def make_evaluate(network: Network, config: Config, mesh: Mesh, step_inputs: StepInputs) -> Evaluate:
    """Make the function that tests a state.

    It replicates the parameters (without optimiser state) and splits the examples over the whole mesh.

    Args:
      network: The network.
      config: The configuration.
      mesh: The devices.
      step_inputs: What a step is fed.

    Returns:
      See `Evaluate`.
    """
    task, normalise, generates_inputs = network.task, step_inputs.normalised, METHODS[config.method].aux_net == "inputs"
    calibrate = make_calibrate(network, config, mesh, step_inputs)
    sample = make_sample(network, config, mesh, step_inputs)

    @partial(_on_mesh, mesh)
    def count(args: tuple[TrainState, tuple[PyTree, ...]], batch: Batch) -> dict[str, Array]:
        """Sums over the batch's predictions, leaving out examples of index -1, and the number of examples."""
        state, calibrated = args
        mode, real, each = chain.Mode(train=False), batch.index >= 0, task.predictions(batch.label)

        def total(means: PerExample) -> Array:
            return jnp.where(real, means * each, 0.0).sum()

        x, trees = normalise(batch.image), network.params.unpack_all(state.stage_params)
        logits = {"composed": composed(network, trees, calibrated, x, mode)[0]}
        if state.aux_params and generates_inputs:
            no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])
            lam, head, _ = aux_net.apply(network.aux_net, state.aux_params, state.aux_stats, x, no_shift, mode)
            running = network.stats.unpack_all(state.stage_stats)[-1]
            path, _ = chain.apply(network.stages[-1], trees[-1], running, lam[-1], mode)
            logits |= {"aux_path": path, "aux_head": head}
        sums = {name: total(task.correct(out, batch.label, 1)) for name, out in logits.items()}
        if network.chain.out_shape[-1] > TOP5_ABOVE:
            sums["top5"] = total(task.correct(logits["composed"], batch.label, 5))
        sums["predictions"], sums["examples"] = total(jnp.ones_like(each)), real.astype(float).sum()
        sums["loss"] = total(task.loss(logits["composed"], batch.label, 0.0))
        return lax.psum(sums, meshes.ALL_AXES)

    def means(state: TrainState, calibrated: tuple[PyTree, ...], feed: Feed) -> dict[str, float]:
        """Of the test examples' predictions, and how many examples there are."""
        # Fetched one by one, so that no more than one batch of a large set waits on the devices.
        sums = [jax.device_get(count((state, calibrated), batch)) for batch in feed.test()]
        totals = jax.tree.map(lambda *values: sum(map(float, values)), *sums)
        predictions = totals.pop("predictions")
        return {name: total / predictions for name, total in totals.items()} | {"examples": totals["examples"]}

    def evaluate(state: TrainState, feed: Feed) -> Evaluation:
        state = replicated(state, mesh)
        last = replace(state, ema=())
        calibrated = calibrate(last, feed)
        found, averaged = means(last, calibrated, feed), dict[str, float]()
        if state.ema:
            average = with_average(state)
            averaged = means(average, calibrate(average, feed), feed)
        own = found["loss"], found["composed"], found.get("aux_path"), found.get("aux_head"), round(found["examples"])
        more: dict[str, Any] = {f"test_{name}": value for name, value in task.metrics(found["loss"]).items()}
        more |= sample(last, calibrated, feed)
        averages = {"ema_loss": "loss", "ema_accuracy": "composed", "ema_top5_accuracy": "top5"}
        more |= {name: averaged.get(of) for name, of in averages.items()}
        return Evaluation(*own, found.get("top5"), **more)

    return evaluate
