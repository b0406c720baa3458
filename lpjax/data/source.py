"""The interface of a data source: a description that needs no data, and the data, in memory or as a stream.

A set that fits stays on the devices (`Dataset`: arrays).  A larger one is read and decoded as it is needed (`Stream`:
image files by position).  The way from files to pixels is the same for every source:

1. Its own: find the files of each split and the classes.  `describe` stops here.
2. Its own: the arrays of each split, with `check_labels`, or its `ImageFiles`.
3. Shared: mean and standard deviation, `Dataset.of` or `images.sampled_moments`.
4. Shared: `reduced`, then `feed` makes batches, of image files by `images.decode`.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from lpjax.cli import printable
from lpjax.config.schema import DataConfig
from lpjax.errors import BadInput, require
from lpjax.nn.chain import Shape

MAX_NAME = 300
"""Characters of a class's name; a folder's name has at most 255."""


@dataclass(frozen=True)
class Spec:
    """What network and schedules must know of a set.

    Attributes:
      image_shape: [H, W, C] as the network gets them.
      classes: How many there are.
      num_train: Examples of the training split.
      num_test: Examples of the test split.
      class_names: One a class, for people; None where the set has none, so that classes go by their numbers.
      cropped: Whether images are cropped at random as they are read, so that an example is never the same twice.
      notes: What is unusual about the files, such as those that are left out, in lines for people.
    """

    image_shape: Shape
    classes: int
    num_train: int
    num_test: int
    class_names: tuple[str, ...] | None = field(default=None, compare=False)
    cropped: bool = field(default=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


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
    load: Callable[[DataConfig], Dataset | Stream]
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


def held_out(labels: Sequence[int], names: Sequence[str], config: DataConfig) -> np.ndarray:
    """Which training examples are held out to be tested on, by `data.holdout`.

    Of each class that share, rounded: at least one and not all, but none of a single one.  Chosen by a hash of
    `data.holdout_seed` and the example's name, so they are the same at each start, and hardly change as some are added.

    Args:
      labels: Of the examples.
      names: Of the examples.
      config: Says how many.

    Returns:
      bool [N].
    """
    digests = [
        hashlib.sha256(f"{config.holdout_seed} {name}".encode(errors="surrogateescape")).digest() for name in names
    ]
    out, of = np.zeros(len(labels), bool), np.asarray(labels)
    for label in np.unique(of):
        members = sorted(np.flatnonzero(of == label), key=lambda i: digests[i])
        count = min(max(round((config.holdout or 0.0) * len(members)), 1), len(members) - 1)
        out[members[:count]] = True
    return out


def _check_classes(spec: Spec, config: DataConfig) -> None:
    """Refuse a single class, and names that an exported model could not have."""
    names = spec.class_names or ()
    require(
        spec.classes > 1,
        f"data.name={config.name}: all examples are of one class{', '.join(('', *names))}: expected two or more; is "
        f"data.dir={config.dir} the right folder?",
    )
    for name in names:
        require(
            printable(name) == name and len(name) <= MAX_NAME,
            f"class {printable(name)[:MAX_NAME]!r}: expected at most {MAX_NAME} characters, that can be shown; rename it",
        )


def reduced_spec(spec: Spec, config: DataConfig) -> Spec:
    """The `Spec` after `data.shrink`, `data.validation_examples` and `data.train_examples`.

    Raises:
      BadInput: They do not fit the set.
    """
    _check_classes(spec, config)
    (height, width, channels), factor = spec.image_shape, config.shrink
    if height % factor or width % factor:
        raise BadInput(
            f"data.shrink={factor}: expected a divisor of the sides of the {height} x {width} images; choose another"
        )
    held_out = config.validation_examples or 0
    left = spec.num_train - held_out
    if left < 1:
        raise BadInput(
            f"data.validation_examples={held_out}: expected fewer than the {spec.num_train} examples of the training "
            f"set; lower it"
        )
    count = left if config.train_examples is None else config.train_examples
    if count > left:
        raise BadInput(
            f"data.train_examples={count}: expected at most the {left} examples of the training set"
            + (f" less data.validation_examples={held_out}" if held_out else "")
            + "; lower it, or leave it unset for all"
        )
    shape = (height // factor, width // factor, channels)
    return replace(spec, image_shape=shape, num_train=count, num_test=held_out or spec.num_test)


def reduced(data: Dataset | Stream, config: DataConfig) -> Dataset | Stream:
    """The set after `data.shrink`, `data.validation_examples` and `data.train_examples`, which fit it (`reduced_spec`).

    Raises:
      BadInput: It is a `Stream`, and one of them is set.
    """
    held_out, count = config.validation_examples, config.train_examples
    if config.shrink == 1 and held_out is None and count is None:
        return data
    if isinstance(data, Stream):
        raise BadInput(
            f"data.shrink={config.shrink}, data.train_examples={count}, data.validation_examples={held_out} with "
            f"data.name={config.name}: expected 1 and unset, as its image files are read while training; set "
            f"data.image_size for smaller images, data.holdout=0.1 to hold a tenth of each class out for testing"
        )
    train, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    if held_out:
        test = train[0][-held_out:], train[1][-held_out:]
    stop = len(train[0]) - (held_out or 0) if count is None else count
    splits = (train[0][:stop], train[1][:stop]), test
    return Dataset.of(*((_downsampled(images, config.shrink), labels) for images, labels in splits))


def _downsampled(images: np.ndarray, factor: int) -> np.ndarray:
    """uint8 images [N, H, W, C] averaged over squares of `factor` x `factor` pixels and rounded."""
    if factor == 1:
        return images
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    """Check that labels are of 0 .. classes-1.

    Args:
      labels: Of any integer type.
      classes: How many there are.
      where: Names the file, for messages.

    Raises:
      BadInput: One is not.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise BadInput(
            f"{where}: label {labels[bad[0]]} of example {bad[0]}: expected 0 to {classes - 1} ({classes} classes); "
            f"use the files of this set, or mend the labels"
        )
