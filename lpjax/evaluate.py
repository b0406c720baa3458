"""Accuracy on held-out examples: of the composed network, of the AuxNet path, of the AuxNet's own head.

Batch-norm statistics gathered in layer-parallel training belong to the AuxNet's inputs and are wrong for the composed
network.  So before an evaluation they are recalibrated: the mean of the batch statistics of composed forward passes
over some training images (not augmented), for every method alike.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from lpjax import aux_net, chain, lagrangian
from lpjax import mesh as meshes
from lpjax.chain import Mode
from lpjax.config import Config
from lpjax.data.feed import Batch, epoch_order, make_gather
from lpjax.data.source import Dataset
from lpjax.network import Network
from lpjax.serial import composed
from lpjax.train_state import TrainState


class Evaluation(NamedTuple):
    """Test figures, losses in nats, accuracies in 0..1.

    composed: the network without AuxNet, recalibrated statistics: THE accuracy.
    aux_path: the last stage on the AuxNet's lambda_{K-1}, running statistics: what training sees.  None without AuxNet.
    aux_head: the AuxNet by itself with its own head; None without AuxNet.
    """

    test_loss: float
    test_accuracy: float
    aux_path_accuracy: float | None
    aux_head_accuracy: float | None


def make_evaluate(
    network: Network, config: Config, mesh: Mesh, dataset: Dataset, normalise: Callable[[Array], Array]
) -> Callable[[TrainState], Evaluation]:
    """A function from a state to its `Evaluation` on the test split of `dataset`.

    The parameters are replicated (without optimiser state) and the examples split over the whole mesh.
    """
    train = make_gather(dataset.train_images, dataset.train_labels, mesh)
    test = make_gather(dataset.test_images, dataset.test_labels, mesh)
    num_train, num_test = len(dataset.train_labels), len(dataset.test_labels)
    size = min(config.batch_size, num_train // mesh.size * mesh.size)
    shuffled = epoch_order(0, 0, num_train)  # a source may list its classes one after another
    calibration = [shuffled[i : i + size] for i in range(0, num_train - size + 1, size)]
    calibration = calibration[: config.eval.calibration_batches]

    def on_mesh(function: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch], Any]:
        specs = (meshes.REPLICATED, meshes.EXAMPLES)
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=meshes.REPLICATED, check_vma=False))

    @on_mesh
    def calibrate(state: TrainState, batch: Batch) -> tuple[PyTree, ...]:
        """The batch's statistics in the composed network."""
        trees, old = network.params.unpack_all(state.stage_params), network.stats.unpack_all(state.stage_stats)
        return composed(network, trees, old, normalise(batch.image), Mode(train=True, axes=meshes.ALL_AXES))[1]

    @on_mesh
    def count(args: tuple[TrainState, tuple[PyTree, ...]], batch: Batch) -> dict[str, Array]:
        """Sums over the batch's examples, leaving out those of index -1."""
        state, calibrated = args
        mode, real = Mode(train=False), batch.index >= 0
        x, trees = normalise(batch.image), network.params.unpack_all(state.stage_params)
        logits = {"composed": composed(network, trees, calibrated, x, mode)[0]}
        if state.aux_params:
            no_shift = tuple(jnp.zeros((len(x), *shape)) for shape in network.interfaces[1:])
            lam, head, _ = aux_net.apply(network.aux_net, state.aux_params, state.aux_stats, x, no_shift, mode)
            running = network.stats.unpack_all(state.stage_stats)[-1]
            path, _ = chain.apply(network.stages[-1], trees[-1], running, lam[-1], mode)
            logits |= {"aux_path": path, "aux_head": head}
        sums = {name: (real & lagrangian.correct(out, batch.label)).astype(float).sum() for name, out in logits.items()}
        sums["loss"] = jnp.where(real, lagrangian.task_loss(logits["composed"], batch.label), 0.0).sum()
        return lax.psum(sums, meshes.ALL_AXES)

    def evaluate(state: TrainState) -> Evaluation:
        state = replace(state, stage_opt=(), aux_opt=(), multiplier=())
        state = jax.device_put(state, NamedSharding(mesh, meshes.REPLICATED))
        stats = [calibrate(state, train(index)) for index in calibration]
        calibrated = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *stats)
        sums = [count((state, calibrated), test(index)) for index in _padded_batches(num_test, config.batch_size)]
        means = jax.tree.map(lambda *values: sum(map(float, values)) / num_test, *jax.device_get(sums))
        return Evaluation(means["loss"], means["composed"], means.get("aux_path"), means.get("aux_head"))

    return evaluate


def _padded_batches(num_examples: int, batch_size: int) -> list[np.ndarray]:
    """Positions 0 .. num_examples-1 in batches of one size; -1 fills up the last."""
    index = np.full(-(-num_examples // batch_size) * batch_size, -1, np.int32)
    index[:num_examples] = np.arange(num_examples)
    return np.split(index, len(index) // batch_size)
