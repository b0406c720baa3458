"""MNIST and its relatives from IDX files in a folder, gzipped or not.

An IDX file is a header, two zero bytes, type, number of axes, axes as big-endian uint32, and the values, row by row
(http://yann.lecun.com/exdb/mnist).  A set is four of them: train and t10k (or test), images and labels, under the names
MNIST gave them: train-images-idx3-ubyte.gz and so on.  Debian's package dataset-fashion-mnist is such a folder.
"""

import contextlib
import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.source import Dataset, Source, Spec, check_labels, data_folder
from lpjax.errors import BadInput, require
from lpjax.nn.chain import Shape

_NAME = re.compile(r"(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-ubyte(\.gz)?")
_UNSIGNED_BYTE = 0x08
MNIST = Spec((28, 28, 1), classes=10, num_train=60_000, num_test=10_000, class_names=tuple("0123456789"))
FASHION_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                 "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip
"""https://github.com/zalandoresearch/fashion-mnist, which took MNIST's format."""


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedIOBase, Shape]]:
    """An IDX file of unsigned bytes, open at its first value, and the lengths of its axes.

    Raises:
      BadInput: It is damaged or not of this format, also while it is read.
    """
    remedy = f"copy or download {path.name} again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, num_axes = struct.unpack(">HBB", file.read(4))
            is_idx = not zeros and kind == _UNSIGNED_BYTE and num_axes
            require(is_idx, f"{path}: expected the header of an IDX file of unsigned bytes; {remedy}")
            yield file, struct.unpack(f">{num_axes}I", file.read(4 * num_axes))
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path}: damaged or truncated ({error}); {remedy}") from error


def axes(path: Path) -> Shape:
    """Lengths of the axes of an IDX file's values, from its header.

    Raises:
      BadInput: It is damaged or not of this format.
    """
    with _open(path) as (_, shape):
        return shape


def read(path: Path) -> np.ndarray:
    """The values of an IDX file, uint8 with `axes`.

    Raises:
      BadInput: It is damaged or not of this format.
    """
    with _open(path) as (file, shape):
        values = np.frombuffer(file.read(), np.uint8)
    require(
        len(values) == math.prod(shape),
        f"{path}: {len(values)} values: expected {math.prod(shape)} for axes {shape}; copy or download it again",
    )
    return values.reshape(shape)


def _files(config: DataConfig) -> dict[tuple[str, str], Path]:
    """The four files, by ("train" or "test", "images" or "labels").

    Raises:
      BadInput, FileNotFoundError: One is missing.
    """
    content = "train-images-idx3-ubyte.gz and the other three IDX files of the set"
    folder = data_folder(config.dir, f"set data.dir to the folder with {content}")
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            split = "train" if match["split"] == "train" else "test"
            found.setdefault((split, match["kind"]), path)
    for split, name in (("train", "train"), ("test", "t10k")):
        for kind, rank in (("images", 3), ("labels", 1)):
            message = f"{folder}: no {name}-{kind}-idx{rank}-ubyte[.gz]; put it there, or correct data.dir"
            require((split, kind) in found, message)
    return found


def _describe(published: Spec | None, config: DataConfig) -> Spec:
    files = _files(config)
    shapes, counts = {}, {}
    for split in ("train", "test"):
        images, labels = files[split, "images"], files[split, "labels"]
        shape = axes(images)
        require(
            len(shape) in (3, 4),
            f"{images}: axes {shape}: expected [N, H, W] or [N, H, W, C], images; is it a file of labels?",
        )
        shapes[split], counts[split] = (*shape[1:], 1)[:3], shape[0]
        require(
            axes(labels) == shape[:1],
            f"{labels}: axes {axes(labels)}: expected one label for each of the {shape[0]} images of {images.name}; "
            f"use files of one set",
        )
        require(shape[0], f"{images}: the {split} split is empty: expected at least one image; use another file")
    require(
        shapes["train"] == shapes["test"],
        f"{files['test', 'images']}: images of {shapes['test']}: expected {shapes['train']} as in the training set; "
        f"use files of one set",
    )
    if published is None:
        return Spec(shapes["train"], int(read(files["train", "labels"]).max()) + 1, counts["train"], counts["test"])
    require(
        shapes["train"] == published.image_shape,
        f"{files['train', 'images']}: images of {shapes['train']}: expected {published.image_shape}; choose "
        f"data.name=idx for another set",
    )
    return replace(published, num_train=counts["train"], num_test=counts["test"])


def _load(published: Spec | None, config: DataConfig) -> Dataset:
    spec, files = _describe(published, config), _files(config)

    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        labels = read(files[split, "labels"]).astype(np.int32)
        check_labels(labels, spec.classes, str(files[split, "labels"]))
        return read(files[split, "images"]).reshape(-1, *spec.image_shape), labels

    return Dataset.of(arrays("train"), arrays("test"))


def _source(name: str, published: Spec | None) -> Source:
    known = (lambda config: published) if published else None
    return Source(name, partial(_describe, published), partial(_load, published), known)


mnist = _source("mnist", MNIST)
fashion_mnist = _source("fashion_mnist", replace(MNIST, class_names=FASHION_NAMES))
idx = _source("idx", None)
