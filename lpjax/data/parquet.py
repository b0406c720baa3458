"""Parquet files of images, as the Hugging Face hub has them: a row an example, with the image file's bytes and a label.

A split is the files whose name, or folder, begins with its word: data/train-00000-of-00002.parquet, train/0000.parquet.
Image files stay as they are, in memory, and are decoded as they are needed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.folder import HOLDOUT, TEST_NAMES, TRAIN_NAMES
from lpjax.data.parquet_files import arrow, find_columns, find_splits, read, read_labels
from lpjax.data.source import Source, Spec, Stream, check_labels, data_folder
from lpjax.data.subset import held_out, without_examples
from lpjax.data.tree import some
from lpjax.errors import extra_packages, require


@dataclass(frozen=True, eq=False)
class Rows:
    """`ImageFiles` in the rows of a table.

    Attributes:
      images: Column of the image files: an arrow array of binary.
      labels: int [N], of the rows used.
      rows: int [N], which they are.
      where: Names the split, for messages.
    """

    images: Any
    labels: np.ndarray
    rows: np.ndarray
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        file = self.images[int(self.rows[position])].as_py()
        require(file is not None, "no image file in this row")
        return file, int(self.labels[position])

    def name(self, position: int) -> str:
        """The split and the row."""
        return f"{self.where}, row {self.rows[position]}"


@dataclass(frozen=True, eq=False)
class _Found:
    """A set in parquet files.

    Attributes:
      classes: Their names; None where they go by their numbers.
      count: How many classes there are.
      paths: Files of the training split and of the one tested on, which are the same where images are held out.
      labels: int [N], of the rows of each.
      used: bool [N], which rows of each are used.
      notes: What is unusual, in lines for people.
    """

    classes: tuple[str, ...] | None
    count: int
    paths: tuple[tuple[Path, ...], tuple[Path, ...]]
    labels: tuple[np.ndarray, np.ndarray]
    used: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...]


def _find(config: DataConfig) -> _Found:
    """Find the splits and their labels.

    Raises:
      BadInput, FileNotFoundError: The files are not as they should be.
    """
    parent = data_folder(config.dir, "set data.dir to the folder with the parquet files")
    of_split, others = find_splits(parent, config)
    train = next((name for name in TRAIN_NAMES if name in of_split), "")
    require(train, f"{parent}: no split train: there are {', '.join(of_split)}; rename the files, or correct data.dir")
    require(config.test_split is None or config.test_split.lower() != train,
            f"data.test_split={config.test_split}: expected another split than that of the training")  # fmt: skip
    found_labels = {name: [read_labels(path, config) for path in paths] for name, paths in of_split.items()}
    raw = {name: [label for own, _ in files for label in own] for name, files in found_labels.items()}
    labelled = {name for name, values in raw.items() if any(label is not None for label in values)}
    require(train in labelled, f"{parent}, split {train}: no row has a label; set data.label to another column")
    classes, first, count = _classes(raw[train], found_labels[train][0][1])
    numbers = {name: _numbers(raw[name], classes, first, count, f"{parent}, split {name}") for name in labelled}
    tests = [name for name in ((config.test_split or "").lower(), *TEST_NAMES) if name in labelled]
    notes = [f"left out, of no split that is known: {some(others)}"] if others else []
    for name in of_split:
        if name not in (train, *tests[: config.holdout is None]):
            notes.append(f"not tested on, split {name}{'' if name in labelled else ', which has no labels'}")
    if config.holdout is None:
        require(
            tests and (config.test_split is None or tests[0] == config.test_split.lower()),
            f"{parent}: no split {config.test_split or 'test'} with labels: there are {', '.join(of_split)}; set "
            f"data.test_split to one with labels, or hold images out: {HOLDOUT}",
        )
        chosen = train, tests[0]
        used = (numbers[train] >= 0, numbers[tests[0]] >= 0)
    else:
        chosen = train, train
        out = held_out(numbers[train].tolist(), [str(row) for row in range(len(numbers[train]))], config)
        used = (~out & (numbers[train] >= 0), out & (numbers[train] >= 0))
    for name in dict.fromkeys(chosen):
        without = int((numbers[name] < 0).sum())
        notes += [f"left out, rows of split {name} without a label: {without:,}"] if without else []
    found = numbers[chosen[0]], numbers[chosen[1]]
    of_classes = classes or tuple(map(str, range(count)))
    notes += without_examples([rows[use] for rows, use in zip(found, used, strict=True)], of_classes)
    return _Found(classes, count, (tuple(of_split[chosen[0]]), tuple(of_split[chosen[1]])), found, used, tuple(notes))


def _classes(labels: Sequence[Any], names: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, int, int]:
    """Names of the classes, None where they go by numbers from 0; the lowest number; and how many there are."""
    there = {label for label in labels if label is not None}
    if any(isinstance(label, str) for label in there):
        found = names or tuple(sorted(map(str, there)))
        return found, 0, len(found)
    first, last = int(min(there) == 1), max(there)
    return tuple(map(str, range(1, last + 1))) if first else None, first, last + 1 - first


def _numbers(labels: list[Any], classes: tuple[str, ...] | None, first: int, count: int, where: str) -> np.ndarray:
    """Labels as int32 [N], -1 where there is none.

    Raises:
      BadInput: One is of no class.
    """
    of = {name: i for i, name in enumerate(classes or ())} if first == 0 else {}
    odd = next((x for x in labels if x is not None and (x not in of if of else isinstance(x, str))), None)
    require(odd is None, f"{where}: label {odd!r}: no class of that name in train; correct or remove such rows")
    if of:
        return np.array([-1 if label is None else of[label] for label in labels], np.int32)
    found = np.array([-1 if label is None else label - first for label in labels], np.int64)
    real = np.array([label is not None for label in labels], bool)
    check_labels(found[real] + first, count, where, first=first)
    return found.astype(np.int32)


# --------------------------------------------------------------------------------------------------------------- source


def _describe(config: DataConfig) -> Spec:
    found = _find(config)
    shape = (config.image_size, config.image_size, config.channels)
    counts = [int(used.sum()) for used in found.used]
    return Spec(shape, found.count, counts[0], counts[1], found.classes, notes=found.notes)


def _load(config: DataConfig) -> Stream:
    with extra_packages():
        from lpjax.data.images import sampled_moments
    found = _find(config)
    paths = list(dict.fromkeys(path for files in found.paths for path in files))
    size, memory = sum(path.stat().st_size for path in paths), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(
        size < memory / 2,
        f"{paths[0].parent}: {size / 1e9:.0f} GB of image files: expected less than half of this machine's "
        f"{memory / 1e9:.0f} GB of memory, which they stay in; write them to a folder of images (data.name=folder)",
    )
    files = {split: _image_files(split, config) for split in found.paths}
    used = [np.flatnonzero(rows) for rows in found.used]
    train, test = (
        Rows(files[found.paths[i]], found.labels[i][used[i]], used[i], str(found.paths[i][0])) for i in (0, 1)
    )
    return Stream(train, test, *sampled_moments(train, config))


def _image_files(paths: tuple[Path, ...], config: DataConfig) -> Any:
    """The column of the image files of a split, whichever way each of its files has them.

    Raises:
      BadInput: A file has none.
    """
    pa, chunks = arrow(), []
    for path in paths:
        name = find_columns(path, config).image
        column = read(path, pa.parquet.read_table, columns=[name])[name]
        if pa.types.is_struct(column.type):
            column = pa.compute.struct_field(column, "bytes")
        require(
            column.null_count < len(column) or not len(column),
            f"{path}: column {name} has names of image files and no files: expected their bytes; write the set with "
            f"the files in it",
        )
        chunks += column.cast(pa.large_binary()).chunks
    return pa.chunked_array(chunks, pa.large_binary())


parquet = Source("parquet", _describe, _load, splits=True)
