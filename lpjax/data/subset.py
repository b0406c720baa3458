"""What is used of a set: fewer and smaller examples, some held out to be tested on; and what is unusual about it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lpjax.cli import printable
from lpjax.config.schema import DataConfig
from lpjax.data.source import Data, Dataset, Spec, Stream, Text
from lpjax.data.tree import some
from lpjax.errors import BadInput, require
from lpjax.nn.chain import Shape

CONSTANT = 1e-7
"""Standard deviation, of images scaled to 0..1, below which a channel is the same everywhere."""

MAX_NAME = 300
"""Characters of a class's name; a folder's name has at most 255."""

MAX_WINDOW = 2**20
"""Tokens of an example, of which an exported model makes logits at once."""


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
            f"class {printable(name)[:MAX_NAME]!r}: expected up to {MAX_NAME} characters that can be shown; rename it",
        )


def reduced_spec(spec: Spec, config: DataConfig) -> Spec:
    """The `Spec` after `data.shrink`, `data.validation_examples` and `data.train_examples`.

    Raises:
      BadInput: They do not fit the set.
    """
    _check_classes(spec, config)
    shape = _image_shape(spec.image_shape, config) if spec.task.images else _token_shape(spec.image_shape, config)
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
    if not (held_out or spec.num_test):
        raise BadInput(
            f"data.name={config.name}: no images to test on: expected at least one; "
            + (f"data.holdout={config.holdout} leaves none of classes with one image" if config.holdout else "add some")
        )
    return replace(spec, image_shape=shape, num_train=count, num_test=held_out or spec.num_test)


def _image_shape(shape: Shape, config: DataConfig) -> Shape:
    """The shape of images after `data.shrink`, which `data.cutout` fits."""
    (height, width, channels), factor = shape, config.shrink
    default = DataConfig().sequence
    require(
        config.sequence == default,
        f"data.sequence={config.sequence}: expected {default}, its default, for data.name={config.name}, whose "
        f"examples are images; leave it out, or set data.name=text",
    )
    if height % factor or width % factor:
        raise BadInput(
            f"data.shrink={factor}: expected a divisor of the sides of the {height} x {width} images; choose another"
        )
    side = min(height, width) // factor
    require(
        config.cutout <= side,
        f"data.cutout={config.cutout}: expected at most a side's {side} pixels, which leaves none; lower it",
    )
    return height // factor, width // factor, channels


def _token_shape(shape: Shape, config: DataConfig) -> Shape:
    """The shape of examples of tokens, for which nothing is set that is of images."""
    require(
        shape[0] <= MAX_WINDOW,
        f"data.sequence={shape[0]}: expected at most {MAX_WINDOW}, which a model can be exported with; lower it",
    )
    for name, none in (("shrink", 1), ("crop", 0), ("flip", False), ("cutout", 0), ("mixup", 0.0)):
        value = getattr(config, name)
        require(value == none, f"data.{name}={value}: expected {none} for data.name={config.name}, which has no images")
    return shape


def reduced(data: Data, config: DataConfig) -> Data:
    """The set after `data.shrink`, `data.validation_examples` and `data.train_examples`, which fit it (`reduced_spec`).

    Raises:
      BadInput: It is a `Stream`, and one of them is set.
    """
    held_out, count = config.validation_examples, config.train_examples
    if config.shrink == 1 and held_out is None and count is None:
        return data
    if isinstance(data, Text):
        return data.part(held_out, count)
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


def data_notes(data: Data, spec: Spec) -> tuple[str, ...]:
    """What is unusual about a set, in lines for people: constant channels, and classes without an example.

    Args:
      data: As it is trained on.
      spec: Of it.
    """
    notes = []
    if (constant := np.flatnonzero(data.std < CONSTANT)).size:
        which = ", ".join(map(str, constant))
        notes.append(f"the images' channels {which} (from 0) are the same everywhere: nothing can be learned from them")
    if isinstance(data, Dataset):  # of files the source has said it
        classes = spec.class_names or tuple(map(str, range(spec.classes)))
        notes += without_examples([data.train_labels, data.test_labels], classes)
    return tuple(notes)


def without_examples(labels: Sequence[Sequence[int] | np.ndarray], classes: Sequence[str]) -> list[str]:
    """A line for each split in which there are classes without an example.

    Args:
      labels: Of the training split and of the test split.
      classes: Their names.
    """
    notes = []
    for what, there in zip(("training", "test"), labels, strict=True):
        missing = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), there)]
        notes += [f"no {what} images of {some(missing)}"] if missing else []
    return notes


def _downsampled(images: np.ndarray, factor: int) -> np.ndarray:
    """uint8 images [N, H, W, C] averaged over squares of `factor` x `factor` pixels and rounded."""
    if factor == 1:
        return images
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)
