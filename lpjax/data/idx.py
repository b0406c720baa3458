"""MNIST and its relatives from IDX files in a folder, gzipped or not.

An IDX file is a header, two zero bytes, type, number of axes, axes as big-endian uint32, and the values, row by row
(http://yann.lecun.com/exdb/mnist).  A set is four of them: train and t10k (or test), images and labels, under the names
MNIST gave them: train-images-idx3-ubyte.gz and so on.  Debian's package dataset-fashion-mnist is such a folder.
"""

import gzip
import math
import re
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from lpjax.chain import Shape
from lpjax.config import DataConfig
from lpjax.data.source import Dataset, Source, Spec, channel_moments, check_labels, data_folder

_NAME = re.compile(r"(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-ubyte(\.gz)?")
_UNSIGNED_BYTE = 0x08
PUBLISHED = Spec((28, 28, 1), classes=10, num_train=60_000, num_test=10_000)
"""MNIST, and Fashion-MNIST, which took its format."""


def read(path: Path, *, header_only: bool = False) -> tuple[Shape, np.ndarray]:
    """Axes and values of an IDX file of unsigned bytes; no values if `header_only`.

    Raises ValueError for a file that is damaged or not of this format.
    """
    remedy = f"copy or download {path.name} again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, num_axes = struct.unpack(">HBB", file.read(4))
            if zeros or kind != _UNSIGNED_BYTE or not num_axes:
                raise ValueError(f"{path}: expected the header of an IDX file of unsigned bytes; {remedy}")
            shape = struct.unpack(f">{num_axes}I", file.read(4 * num_axes))
            values = np.frombuffer(b"" if header_only else file.read(), np.uint8)
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated ({error}); {remedy}") from error
    if header_only:
        return shape, values
    if len(values) != math.prod(shape):
        raise ValueError(f"{path}: {len(values)} values: expected {math.prod(shape)} for axes {shape}; {remedy}")
    return shape, values.reshape(shape)


def _files(config: DataConfig) -> dict[tuple[str, str], Path]:
    """The four files, by ("train" or "test", "images" or "labels")."""
    folder = data_folder(config, "train-images-idx3-ubyte.gz and the other three IDX files of the set")
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            split = "train" if match["split"] == "train" else "test"
            found.setdefault((split, match["kind"]), path)
    for split, name in (("train", "train"), ("test", "t10k")):
        for kind, axes in (("images", 3), ("labels", 1)):
            if (split, kind) not in found:
                raise ValueError(f"{folder}: no {name}-{kind}-idx{axes}-ubyte[.gz]; put it there, or correct data.dir")
    return found


def _image_shape(path: Path, shape: Shape) -> Shape:
    """[H, W, C] of a file of images with axes [N, H, W] or [N, H, W, C]."""
    if len(shape) not in (3, 4):
        raise ValueError(f"{path}: axes {shape}: expected [N, H, W] or [N, H, W, C], images; is it a file of labels?")
    return (*shape[1:], 1)[:3]


def _describe(published: Spec | None, config: DataConfig) -> Spec:
    files = _files(config)
    heads = {key: read(path, header_only=True)[0] for key, path in files.items()}
    counts = {}
    for split in ("train", "test"):
        images, labels = files[split, "images"], files[split, "labels"]
        counts[split] = heads[split, "images"][0]
        if heads[split, "labels"] != (counts[split],):
            raise ValueError(f"{labels}: axes {heads[split, 'labels']}: expected one label for each of the "
                             f"{counts[split]} images of {images.name}; use files of one set")  # fmt: skip
        if not counts[split]:
            raise ValueError(f"{images}: the {split} split is empty: expected at least one image; use another file")
    shapes = [_image_shape(files[split, "images"], heads[split, "images"]) for split in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{files['test', 'images']}: images of {shapes[1]}: expected {shapes[0]} as in the training "
                         f"set; use files of one set")  # fmt: skip
    if published and shapes[0] != published.image_shape:
        raise ValueError(f"{files['train', 'images']}: images of {shapes[0]}: expected {published.image_shape}; choose "
                         f"data.name=idx for another set")  # fmt: skip
    classes = published.classes if published else int(read(files["train", "labels"])[1].max()) + 1
    return Spec(shapes[0], classes, counts["train"], counts["test"])


def _load(published: Spec | None, config: DataConfig) -> Dataset:
    spec, files = _describe(published, config), _files(config)
    arrays = {key: read(path)[1] for key, path in files.items()}
    for split in ("train", "test"):
        check_labels(arrays[split, "labels"], spec.classes, str(files[split, "labels"]))
    train, test = (arrays[split, "images"].reshape(-1, *spec.image_shape) for split in ("train", "test"))
    labels = (arrays[split, "labels"].astype(np.int32) for split in ("train", "test"))
    train_labels, test_labels = labels
    return Dataset(train, train_labels, test, test_labels, *channel_moments(train))


def _source(name: str, published: Spec | None) -> Source:
    return Source(
        name,
        partial(_describe, published),
        partial(_load, published),
        (lambda config: published) if published else None,
    )


mnist = _source("mnist", PUBLISHED)
fashion_mnist = _source("fashion_mnist", PUBLISHED)
idx = _source("idx", None)
