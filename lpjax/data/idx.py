"""MNIST and its relatives from IDX files in a folder, gzipped or not.

An IDX file is a header, two zero bytes, type, number of axes, axes as big-endian uint32, and the values, row by row
(http://yann.lecun.com/exdb/mnist).  A set is four of them: train and t10k (or test), images and labels, under the names
MNIST gave them, train-images-idx3-ubyte.gz and so on, with a prefix as in EMNIST, or in folders.  Debian's package
dataset-fashion-mnist is such a folder.
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

_NAME = re.compile(
    r"(?P<set>(?:.*[-_])?)(?P<split>train|t10k|test)[-_](?P<kind>images|labels)[-._]idx\d[-._]ubyte(\.gz)?"
)
_KINDS = (("images", 3), ("labels", 1))
_DEPTHS = ("*", "*/*", "*/*/*")
"""Where files are looked for: as archives unpack, and as torchvision lays them, ROOT/MNIST/raw."""

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
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"  # whatever the name says: browsers and unpackers change one of both
        with gzip.open(path) if zipped else path.open("rb") as file:
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
    """The four files, by ("train" or "test", "images" or "labels"): of the one whole set that is nearest to the folder.

    Raises:
      BadInput, FileNotFoundError: One is missing, or there are several sets.
    """
    content = "train-images-idx3-ubyte.gz and the other three IDX files of the set"
    folder = data_folder(config.dir, f"set data.dir to the folder with {content}")
    sets: dict[tuple[Path, str], dict[tuple[str, str], Path]] = {}
    for path in sorted(path for depth in _DEPTHS for path in folder.glob(depth)):
        if (match := _NAME.fullmatch(path.name)) and path.is_file():
            # Some programs unpack a file into a folder of its own name; people make one for each split.
            own = _NAME.fullmatch(path.parent.name) or path.parent.name.lower() in ("train", "test", "t10k")
            place = path.parent.parent if own and path.parent != folder else path.parent
            split = "train" if match["split"] == "train" else "test"
            sets.setdefault((place, match["set"]), {}).setdefault((split, match["kind"]), path)
    whole = [key for key in sets if len(sets[key]) == 4]
    nearest = [key for key in whole if len(key[0].parts) == min(len(place.parts) for place, _ in whole)]
    if len(nearest) > 1:
        names = ", ".join(sorted(str(place / f"{name}train-images..") for place, name in nearest))
        raise BadInput(f"{folder}: several sets: {names}: expected one; set data.dir to a folder with one of them")
    if nearest:
        return sets[nearest[0]]
    found = max(sets.values(), key=len, default={})
    wanted = [(split, name, *kind) for split, name in (("train", "train"), ("test", "t10k")) for kind in _KINDS]
    lacks = [f"{name}-{kind}-idx{rank}-ubyte[.gz]" for split, name, kind, rank in wanted if (split, kind) not in found]
    missing = ", ".join(lacks)
    raise FileNotFoundError(f"{folder}: no {missing}; put it there, or correct data.dir")


def _first_label(published: Spec | None, labels: np.ndarray) -> int:
    """The label of the network's first output: 1 in a set of one's own whose labels start there, else 0."""
    return int(published is None and labels.min() == 1)


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
        values = read(files["train", "labels"])
        first, last = _first_label(published, values), int(values.max())
        names = tuple(map(str, range(first, last + 1))) if first else None
        return Spec(shapes["train"], last + 1 - first, counts["train"], counts["test"], names)
    require(
        shapes["train"] == published.image_shape,
        f"{files['train', 'images']}: images of {shapes['train']}: expected {published.image_shape}; choose "
        f"data.name=idx for another set",
    )
    return replace(published, num_train=counts["train"], num_test=counts["test"])


def _load(published: Spec | None, config: DataConfig) -> Dataset:
    spec, files = _describe(published, config), _files(config)
    first = _first_label(published, read(files["train", "labels"]))

    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        labels = read(files[split, "labels"]).astype(np.int32)
        check_labels(labels, spec.classes, str(files[split, "labels"]), first=first)
        return read(files[split, "images"]).reshape(-1, *spec.image_shape), labels - first

    return Dataset.of(arrays("train"), arrays("test"))


def _source(name: str, published: Spec | None) -> Source:
    known = (lambda config: published) if published else None
    return Source(name, partial(_describe, published), partial(_load, published), known)


mnist = _source("mnist", MNIST)
fashion_mnist = _source("fashion_mnist", replace(MNIST, class_names=FASHION_NAMES))
idx = _source("idx", None)
