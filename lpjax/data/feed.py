"""Batches for a set that fits on the devices: it is put there once, and each batch is gathered from it in jit."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from lpjax.data.source import Dataset
from lpjax.mesh import EXAMPLES, REPLICATED


@struct.dataclass
class Batch:
    """Examples of one step, sharded over the mesh by `mesh.EXAMPLES`.

    image: uint8 [B, H, W, C], as stored.  label: int32 [B].  index: int32 [B], position in the training set; keys the
    augmentation and the table of multipliers.
    """

    image: PyTree
    label: PyTree
    index: PyTree


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of the training set in one epoch, a permutation of 0..num_examples-1 from (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)


def make_gather(images: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Callable[[np.ndarray], Batch]:
    """A function from example positions [B] to the `Batch` of those examples, sharded over the mesh.

    Position -1 fills up a batch: it gets some example's image and keeps its index.
    """
    everywhere, split = NamedSharding(mesh, REPLICATED), NamedSharding(mesh, EXAMPLES)
    resident = jax.device_put((images, labels), everywhere)

    @partial(jax.jit, out_shardings=split)
    def gather(resident: tuple[jax.Array, jax.Array], index: jax.Array) -> Batch:
        return Batch(image=resident[0][index], label=resident[1][index], index=index)  # -1 is the last example

    def batch(index: np.ndarray) -> Batch:
        return gather(resident, jax.device_put(index.astype(np.int32), split))

    return batch


def train_batches(
    dataset: Dataset, mesh: Mesh, *, seed: int, batch_size: int, num_steps: int, first_step: int = 0
) -> Iterator[Batch]:
    """Batches of steps first_step .. num_steps-1; the last incomplete batch of each epoch is left out.

    Raises ValueError when the set is smaller than one batch.
    """
    gather = make_gather(dataset.train_images, dataset.train_labels, mesh)
    per_epoch = steps_per_epoch(len(dataset.train_labels), batch_size)
    order, order_epoch = np.empty(0, np.int32), -1
    for step in range(first_step, num_steps):
        epoch, position = divmod(step, per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(seed, epoch, len(dataset.train_labels)), epoch
        yield gather(order[position * batch_size : (position + 1) * batch_size])


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Complete batches of one epoch."""
    if num_examples < batch_size:
        raise ValueError(f"batch_size={batch_size}: the training set has {num_examples} examples; use fewer per batch")
    return num_examples // batch_size
