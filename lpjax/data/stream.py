"""Batches of a set too large for memory: read and decoded by grain's threads ahead of the step, each process its share.

Whatever the number of processes, the sequence of training examples is the same, cut into the same batches: a process
reads the examples that belong on its devices (`mesh.own_examples`).  Only where files are damaged, each skips its own.
What depends on an image file's own size (the random resized crop) is done here; the rest of the augmentation is in the
step.
"""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lpjax.config.schema import Config
from lpjax.data import images
from lpjax.data.batch import Batch, Feed
from lpjax.data.source import ImageFiles, Stream
from lpjax.errors import CorruptDataError
from lpjax.parallel.mesh import EXAMPLES, own_examples


class _Decoder:
    """Turns positions of one split into examples {image, label, index}; grain's threads share it, and read ahead.

    A file that cannot be decoded adds "name: reason" to `corrupt`, once: the reason may differ from crop to crop.
    """

    def __init__(self, files: ImageFiles, config: Config, corrupt: list[str]) -> None:
        self._files, self._config, self._corrupt = files, config.data, corrupt
        self._limit = min(config.data.max_corrupt, len(files) - 1)  # with none left there is nothing to wait for
        self._lock = threading.Lock()

    def __call__(self, position: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray] | None:
        """The example at a position, or None if its file is damaged.

        Args:
          position: Of the split's image files.
          rng: Draws the random resized crop; without it the image is cropped in the centre.

        Raises:
          CorruptDataError: It is one damaged file too many.
        """
        data = self._config
        try:
            file, label = self._files[position]
            image = images.decode(file, size=data.image_size, channels=data.channels, rng=rng)
        except images.DECODING_ERRORS as error:
            name = f"{self._files.name(position)}: "
            with self._lock:
                if not any(message.startswith(name) for message in self._corrupt):
                    self._corrupt.append(f"{name}{error}")
                count = len(self._corrupt)
            if count > self._limit:
                most = f"expected at most data.max_corrupt={data.max_corrupt}; replace them, or raise data.max_corrupt"
                if count == len(self._files):
                    most = "which are all of the split; replace them"
                raise CorruptDataError(
                    f"{name}{error}; with it {count} image files cannot be decoded: {most}"
                ) from error
            return None
        return {"image": image, "label": np.asarray(label, np.int32), "index": np.asarray(position, np.int32)}

    def padded(self, position: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The example, or for position -1 and a damaged file a black image of index -1."""
        example = self(position, rng) if position >= 0 else None
        if example is not None:
            return example
        shape = (self._config.image_size, self._config.image_size, self._config.channels)
        return {"image": np.zeros(shape, np.uint8), "label": np.array(0, np.int32), "index": np.array(-1, np.int32)}


class Streamed(Feed):
    """`Feed` of a `Stream`."""

    def __init__(self, stream: Stream, config: Config, mesh: Mesh) -> None:
        super().__init__(len(stream.train), len(stream.test), config, mesh)
        self._files = {"train": stream.train, "test": stream.test}

    def train(self) -> "StreamedBatches":
        """See `Feed`."""
        return StreamedBatches(self._files["train"], self._config, self._mesh)

    def in_order(self, split: str, order: list[np.ndarray]) -> Iterator[Batch]:
        """See `Feed`: batches of one size; training images are cropped at random."""
        decoder = _Decoder(self._files[split], self._config, self.corrupt if split == "test" else [])
        examples = grain.MapDataset.source(np.concatenate(order)).seed(0)
        examples = examples.random_map(lambda i, rng: decoder.padded(int(i), rng if split == "train" else None))
        starts = np.cumsum([0] + [len(positions) for positions in order])
        local = [start + own_examples(self._mesh, len(batch)) for start, batch in zip(starts, order, strict=False)]
        share = grain.MapDataset.source(np.concatenate(local)).map(lambda i: examples[int(i)])
        for batch in share.to_iter_dataset(_read_options(self._config)).batch(len(local[0])):
            yield _on_mesh(batch, self._mesh)


class StreamedBatches:
    """`TrainBatches` of a `Stream`.

    Epochs follow without a gap: a batch may hold the end of one and the start of the next.
    """

    def __init__(self, files: ImageFiles, config: Config, mesh: Mesh) -> None:
        self.corrupt: list[str] = []
        self._mesh, self.waited = mesh, 0.0
        decoder = _Decoder(files, config, self.corrupt)
        order = grain.MapDataset.range(len(files)).seed(config.seed).shuffle().repeat()  # reshuffled each epoch
        examples = order.random_map(lambda i, rng: decoder(int(i), rng))
        own, size = own_examples(mesh, config.batch_size), config.batch_size
        count = self._own = len(own)
        share = grain.MapDataset.range(sys.maxsize).map(lambda i: examples[i // count * size + int(own[i % count])])
        self._batches = iter(share.to_iter_dataset(_read_options(config)).batch(count))

    def __next__(self) -> Batch:
        began = time.perf_counter()
        local = next(self._batches)
        self.waited = time.perf_counter() - began
        return _on_mesh(local, self._mesh)

    def get_state(self) -> dict[str, Any]:
        """See `TrainBatches`: grain's own, for this process's share, and what was skipped."""
        return {"grain": self._batches.get_state(), "own": self._own, "corrupt": list(self.corrupt)}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `TrainBatches`."""
        self.corrupt[:] = state["corrupt"]
        grain_state = state["grain"]
        if state["own"] != self._own:  # another number of processes: from the start of that batch
            grain_state = {"next_index": grain_state["next_index"] // state["own"] * self._own}
        self._batches.set_state(grain_state)


def _read_options(config: Config) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch)


def _on_mesh(local: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """The batch of which every process has its share."""
    sharding = NamedSharding(mesh, EXAMPLES)
    return Batch(**{name: jax.make_array_from_process_local_data(sharding, part) for name, part in local.items()})
