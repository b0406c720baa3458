"""Batches of a data set, sharded over the mesh.

`Resident`: a set that fits is put on the devices once, and each batch is gathered from it in jit.  `OnHost`: windows of
a text.  `stream.Streamed`: larger sets.  A step cannot tell them apart.
"""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lpjax.config.schema import Config
from lpjax.data.batch import Batch, Feed, epoch_order, steps_per_epoch
from lpjax.data.source import Data, Dataset, Stream, Text, window_counts
from lpjax.errors import extra_packages
from lpjax.parallel.mesh import EXAMPLES, REPLICATED
from lpjax.parallel.processes import from_host


def make_feed(data: Data, config: Config, mesh: Mesh) -> Feed:
    """The feed of a data set, whichever kind it is."""
    if isinstance(data, Stream):
        with extra_packages():  # grain and Pillow
            from lpjax.data.stream import Streamed
        return Streamed(data, config, mesh)
    return OnHost(data, config, mesh) if isinstance(data, Text) else Resident(data, config, mesh)


class _Gathered(Feed):
    """`Feed` of a set whose batches are gathered by the positions of their examples."""

    _gather: dict[str, Callable[[Any], Batch]]
    _read: dict[str, Callable[[np.ndarray], Any]]
    """What the host does first, by split: what `_gather` is given."""

    def train(self) -> "GatheredBatches":
        """See `Feed`."""
        return GatheredBatches(self._read["train"], self._gather["train"], self._num_train, self._config)

    def in_order(self, split: str, order: list[np.ndarray]) -> Iterator[Batch]:
        """See `Feed`."""
        return (self._gather[split](self._read[split](index)) for index in order)


class Resident(_Gathered):
    """`Feed` of a set in memory, replicated over the devices."""

    def __init__(self, data: Dataset, config: Config, mesh: Mesh) -> None:
        super().__init__(len(data.train_labels), len(data.test_labels), config, mesh)
        splits = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
        self._gather = {split: make_gather(*arrays, mesh) for split, arrays in splits.items()}
        self._read = dict.fromkeys(splits, lambda index: index)


class OnHost(_Gathered):
    """`Feed` of a text, whose windows the host cuts."""

    def __init__(self, data: Text, config: Config, mesh: Mesh) -> None:
        super().__init__(*window_counts(len(data.train), len(data.test), data.sequence), config, mesh)
        examples = NamedSharding(mesh, EXAMPLES)

        def read(split: str, index: np.ndarray) -> tuple[np.ndarray, ...]:
            return *data.windows(split, index), index.astype(np.int32)

        def gather(arrays: tuple[np.ndarray, ...]) -> Batch:
            return Batch(*(from_host(array, examples) for array in arrays))

        self._read = {split: partial(read, split) for split in ("train", "test")}
        self._gather = dict.fromkeys(self._read, gather)


class GatheredBatches:
    """`TrainBatches` that are gathered by position: (seed, step) alone determine a batch.

    The last incomplete batch of an epoch is left out.
    """

    def __init__(
        self, read: Callable[[np.ndarray], Any], gather: Callable[[Any], Batch], num_examples: int, config: Config
    ) -> None:
        self.corrupt: list[str] = []
        self._read, self._gather, self._size = read, gather, config.batch_size
        self._per_epoch = steps_per_epoch(num_examples, config.batch_size)
        self._order = lru_cache(maxsize=1)(lambda epoch: epoch_order(config.seed, epoch, num_examples))
        self._step, self.waited = 0, 0.0

    def __next__(self) -> Batch:
        began = time.perf_counter()
        epoch, position = divmod(self._step, self._per_epoch)
        self._step += 1
        examples = self._read(self._order(epoch)[position * self._size : (position + 1) * self._size])
        self.waited = time.perf_counter() - began
        return self._gather(examples)

    def get_state(self) -> dict[str, Any]:
        """See `TrainBatches`: the number of batches returned so far."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `TrainBatches`."""
        self._step = state["step"]


def make_gather(images: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Callable[[np.ndarray], Batch]:
    """A function from positions of examples, int [B], to their `Batch`.

    Args:
      images: uint8 [N, H, W, C]; replicated over the mesh, once.
      labels: int32 [N].
      mesh: What a batch is sharded over.
    """
    everywhere, split = NamedSharding(mesh, REPLICATED), NamedSharding(mesh, EXAMPLES)
    resident = from_host(images, everywhere), from_host(labels, everywhere)

    @partial(jax.jit, out_shardings=split)
    def gather(resident: tuple[jax.Array, jax.Array], index: jax.Array) -> Batch:
        return Batch(image=resident[0][index], label=resident[1][index], index=index)  # -1 is the last example

    def batch(index: np.ndarray) -> Batch:
        return gather(resident, from_host(index.astype(np.int32), split))

    return batch
