"""The interface of a data source: a description that needs no data, and the data, in memory or as a stream.

A set that fits stays on the devices (`Dataset`: arrays).  A larger one is read and decoded as it is needed (`Stream`:
image files by position).  A `Text` stays on the host or in its file.  The way from files to pixels is always the same:

1. Its own: find the files of each split and the classes.  `describe` stops here.
2. Its own: the arrays of each split, with `check_labels`, or its `ImageFiles`.
3. Shared: mean and standard deviation, `Dataset.of` or `images.sampled_moments`.
4. Shared: `subset.reduced`, then `feed` makes batches, of image files by `images.decode`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.errors import BadInput
from lpjax.nn.chain import Shape
from lpjax.nn.losses import CLASSIFICATION, Task


@dataclass(frozen=True)
class Spec:
    """What network and schedules must know of a set.

    Attributes:
      image_shape: [H, W, C] as the network gets them; of tokens [T].
      classes: How many there are; of tokens the size of the vocabulary.
      num_train: Examples of the training split.
      num_test: Examples of the test split.
      class_names: One a class, for people; None where the set has none, so that classes go by their numbers.
      cropped: Whether images are cropped at random as they are read, so that an example is never the same twice.
      notes: What is unusual about the files, such as those that are left out, in lines for people.
      task: What a network is to learn of the examples.
      sha256: Of a text; None before it is read, and of images.
    """

    image_shape: Shape
    classes: int
    num_train: int
    num_test: int
    class_names: tuple[str, ...] | None = field(default=None, compare=False)
    cropped: bool = field(default=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    task: Task = CLASSIFICATION
    sha256: str | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set in memory.

    Attributes:
      train_images: uint8 [N, H, W, C].
      train_labels: int32 [N].
      test_images: uint8 [N', H, W, C].
      test_labels: int32 [N'].
      mean: [C], of the training images scaled to 0..1.
      std: [C], their standard deviation.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> "Dataset":
        """The set of two splits (images, labels), with the moments of its training images."""
        return cls(*train, *test, *channel_moments(train[0]))


@runtime_checkable
class ImageFiles(Protocol):
    """One split of image files (JPEG, PNG, ..), by position 0 .. len-1.  Used from several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        """The undecoded file and its label."""
        ...

    def name(self, position: int) -> str:
        """The file's name, for messages."""
        ...


@dataclass(frozen=True, eq=False)
class Stream:
    """A set that is read and decoded as it is needed.

    Attributes:
      train: Files of the training split.
      test: Files of the test split.
      mean: [C], of images scaled to 0..1.
      std: [C], their standard deviation.
    """

    train: ImageFiles
    test: ImageFiles
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens in the host's memory or in a mapped file, cut into windows; each token's label is the one behind it.

    Attributes:
      train: uint8 [n].
      test: uint8 [n'].
      sequence: T, tokens of a window.
      sha256: Of all tokens, those to train on first.
      mean: 0, as tokens are not normalised.
      std: Likewise, 1.
    """

    train: np.ndarray
    test: np.ndarray
    sequence: int
    sha256: str
    mean: ClassVar[np.ndarray] = np.zeros(1)
    std: ClassVar[np.ndarray] = np.ones(1)

    def windows(self, split: str, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows of a split, "train" or "test".

        Args:
          split: Which one.
          positions: [B], of the windows; a negative one stands for any.

        Returns:
          Tokens uint8 [B, T] and labels int32 [B, T], -1 behind the end of the text.
        """
        text = self.train if split == "train" else self.test
        places = np.maximum(positions, 0)[:, None] * self.sequence + np.arange(self.sequence + 1)
        tokens = text[np.minimum(places, len(text) - 1)]
        return tokens[:, :-1], np.where(places[:, 1:] < len(text), tokens[:, 1:].astype(np.int32), np.int32(-1))

    def part(self, held_out: int | None, count: int | None) -> "Text":
        """The text after `data.validation_examples` and `data.train_examples`."""
        T, stop, test = self.sequence, window_counts(len(self.train), 0, self.sequence)[0], self.test
        if held_out:
            stop, test = stop - held_out, self.train[(stop - held_out) * T : stop * T + 1]
        return replace(self, train=self.train[: (stop if count is None else count) * T + 1], test=test)


def window_counts(num_train: int, num_test: int, sequence: int) -> tuple[int, int]:
    """How many windows there are in so many tokens to train and to test on; the last one of a test may be shorter."""
    return (num_train - 1) // sequence, -(-(num_test - 1) // sequence)


Data = Dataset | Stream | Text
"""What a set is read as."""


@dataclass(frozen=True)
class Source:
    """A data set, or a format that data sets come in.

    `describe` and `load` raise ValueError or OSError, naming the file at fault and what to do.

    Attributes:
      name: `config.data.name`.
      describe: The `Spec` of what is in `config.dir`, from headers and lists of files only.
      load: The data.
      published: The `Spec` of the published set, without looking at any file; None for a format.
      splits: Whether it obeys `data.holdout` and `data.test_split`.
    """

    name: str
    describe: Callable[[DataConfig], Spec]
    load: Callable[[DataConfig], "Data"]
    published: Callable[[DataConfig], Spec] | None = None
    splits: bool = False


def data_folder(path: str | os.PathLike[str] | None, remedy: str) -> Path:
    """The folder of the data.

    Args:
      path: `data.dir`.
      remedy: What to do where it is unset or not there, for messages.

    Raises:
      BadInput, FileNotFoundError: It is unset or not there.
    """
    if path is None:
        raise BadInput(f"data.dir is unset: expected a folder; {remedy}")
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise FileNotFoundError(f"data.dir={path}: no such folder; {remedy}")
    return folder


def channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      Two arrays [C], of the images scaled to 0..1.
    """
    counts = np.stack([np.bincount(channel.reshape(-1), minlength=256) for channel in np.moveaxis(images, -1, 0)])
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    return mean, np.sqrt(np.maximum(shares @ values**2 - mean**2, 0.0))


def check_labels(labels: np.ndarray, classes: int, where: str, first: int = 0) -> None:
    """Check that labels are of first .. first+classes-1.

    Args:
      labels: Of any integer type.
      classes: How many there are.
      where: Names the file, for messages.
      first: The lowest.

    Raises:
      BadInput: One is not.
    """
    last = first + classes - 1
    bad = np.flatnonzero((labels < first) | (labels > last))
    if len(bad):
        raise BadInput(
            f"{where}: label {labels[bad[0]]} of example {bad[0]}: expected {first} to {last} ({classes} classes); "
            f"use the files of this set, or mend the labels"
        )
