"""A batch of examples, what gives batches, and the order of examples in them."""

import abc
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import PyTree

from lpjax.config.schema import Config
from lpjax.errors import BadInput


@struct.dataclass
class Batch:
    """Examples of one step, sharded over the mesh by `mesh.EXAMPLES`.

    Attributes:
      image: uint8 [B, H, W, C], as stored.
      label: int32 [B].
      index: int32 [B], position in the training set; keys the augmentation, dropout and the table of multipliers.
        -1 pads a test batch, with any image.
      partner_image: Of the example that each one is mixed with, see `step_inputs.paired`; None without mixup.
      partner_label: Likewise.
    """

    image: PyTree
    label: PyTree
    index: PyTree
    partner_image: PyTree = None
    partner_label: PyTree = None


@runtime_checkable
class TrainBatches(Protocol):
    """Endless iterator over training batches that can start at any step.

    Attributes:
      corrupt: One message for each image file skipped so far because it could not be decoded.
      waited: Seconds that the host took to have the last batch's examples: for their order, for files to be read and
        decoded.  Not for putting them on the devices, which may have to finish a step first.
    """

    corrupt: list[str]
    waited: float

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The position of the iterator, in JSON's types."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a position that `get_state` returned."""
        ...


class Feed(abc.ABC):
    """Batches of one data set on one mesh, B = `config.batch_size` examples each.

    Args:
      num_train: Examples of the training split.
      num_test: Examples of the test split.
      config: The run's.
      mesh: What a batch is sharded over.

    Attributes:
      corrupt: One message for each test image left out so far because it could not be decoded.
    """

    def __init__(self, num_train: int, num_test: int, config: Config, mesh: Mesh) -> None:
        self._num_train, self._num_test, self._config, self._mesh = num_train, num_test, config, mesh
        self.corrupt: list[str] = []

    @abc.abstractmethod
    def train(self) -> TrainBatches:
        """Training batches; each epoch is in a new order, from (seed, epoch)."""

    @abc.abstractmethod
    def in_order(self, split: str, order: list[np.ndarray]) -> Iterator[Batch]:
        """Batches of a split, "train" or "test", of the examples at the positions `order[batch][example]`."""

    def sample(self, count: int) -> Iterator[Batch]:
        """At most `count` batches of training images as a training step gets them, the same ones each time."""
        return self.in_order("train", sample_order(self._num_train, self._config.batch_size, self._mesh, count))

    def test(self) -> Iterator[Batch]:
        """The whole test split; the last batch is padded."""
        return self.in_order("test", padded_order(self._num_test, self._config.batch_size))


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of the training set in one epoch, a permutation of 0..num_examples-1 from (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)


def sample_order(num_examples: int, batch_size: int, mesh: Mesh, count: int) -> list[np.ndarray]:
    """Positions of at most `count` batches of training examples that fit the mesh, the same ones each time.

    They are shuffled: a source may list its classes one after another.
    """
    size = min(batch_size, num_examples // mesh.size * mesh.size)
    shuffled = epoch_order(0, 0, num_examples)
    return [shuffled[i : i + size] for i in range(0, num_examples - size + 1, size)][:count]


def padded_order(num_examples: int, batch_size: int) -> list[np.ndarray]:
    """Positions 0 .. num_examples-1 in batches of one size; the last is padded with -1."""
    index = np.pad(np.arange(num_examples, dtype=np.int32), (0, -num_examples % batch_size), constant_values=-1)
    return list(index.reshape(-1, batch_size))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Number of complete batches in one epoch.

    Raises:
      BadInput: The training set is smaller than a batch.
    """
    if num_examples < batch_size:
        raise BadInput(f"batch_size={batch_size}: the training set has {num_examples} examples; use fewer per batch")
    return num_examples // batch_size
