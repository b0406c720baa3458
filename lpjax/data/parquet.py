"""Parquet files of images, as the Hugging Face hub has them: a row an example, with the image file's bytes and a label.

A split is the files whose name, or folder, begins with its word: data/train-00000-of-00002.parquet, train/0000.parquet.
Image files stay as they are, in memory, and are decoded as they are needed.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.folder import HOLDOUT, TEST_NAMES, TRAIN_NAMES
from lpjax.data.source import Source, Spec, Stream, check_labels, data_folder
from lpjax.data.subset import held_out
from lpjax.errors import BadInput, extra_packages, require

LABELS = ("label", "labels", "fine_label", "class", "target")
"""Names of the column of labels, the likeliest first."""


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


def _pyarrow() -> Any:
    with extra_packages():
        import pyarrow.compute
        import pyarrow.parquet
    return pyarrow


def _splits(config: DataConfig) -> dict[str, list[Path]]:
    """The files of each split, by its word.

    Raises:
      BadInput, FileNotFoundError: There are none, or those of several sets.
    """
    parent = data_folder(config.dir, "set data.dir to the folder with the parquet files")
    files = sorted(path for path in parent.rglob("*.parquet") if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{parent}: no *.parquet: expected train-*.parquet and the like; correct data.dir")
    splits: dict[str, list[Path]] = {}
    places: dict[str, set[Path]] = {}
    known = {*TRAIN_NAMES, *TEST_NAMES, *({config.test_split.lower()} if config.test_split else ())}
    for path in files:
        parts = path.relative_to(parent).with_suffix("").parts
        words = [next(iter(re.split(r"[-_.]", part.lower()))) for part in parts]
        split = next((word for word in reversed(words) if word in known), "train" if len(files) == 1 else None)
        if split:
            splits.setdefault(split, []).append(path)
            places.setdefault(split, set()).add(path.parent)
    require(splits, f"{parent}: no split's name in {files[0].name} and the like: expected train-*.parquet; rename them")
    several = next((sorted(folders) for folders in places.values() if len(folders) > 1), None)
    require(
        not several, f"{parent}: several sets, in {', '.join(map(str, several or ()))}; set data.dir to one of them"
    )
    return splits


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table are.

    Attributes:
      image: Name of that of the images.
      label: Name of that of the labels.
      names: Of the classes, as the file says.
    """

    image: str
    label: str
    names: tuple[str, ...] | None


def _columns(path: Path, config: DataConfig) -> _Columns:
    """Find the columns, by their types and by what the hub's metadata say.

    Raises:
      BadInput: There are none, or it cannot be told.
    """
    pa = _pyarrow()
    schema = _reading(path, pa.parquet.read_schema)
    declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = {name: feature.get("names") for name, feature in declared.items() if feature.get("_type") == "ClassLabel"}

    def holds_files(kind: Any) -> bool:
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    images = [column.name for column in schema if holds_files(column.type)]
    simple = [c.name for c in schema if pa.types.is_integer(c.type) or pa.types.is_string(c.type) or c.name in names]
    labels = [config.label] if config.label else [name for name in (*LABELS, *names) if name in simple] or simple
    found = f"{path}: columns {', '.join(schema.names)}"
    require(images, f"{found}: no image files among them: expected bytes, or a struct with bytes; convert the file")
    require(
        labels and labels[0] in schema.names,
        f"{found}: no labels{f' {config.label}' if config.label else ''} among them: expected a column of numbers or "
        f"words; set data.label to its name",
    )
    likely = labels[0] in (*LABELS, *names, config.label)
    require(likely or len(labels) == 1, f"{found}: which are the labels? set data.label to one of {', '.join(labels)}")
    return _Columns(images[0], labels[0], tuple(names[labels[0]]) if names.get(labels[0]) else None)


def _reading(path: Path, read: Callable[..., Any], **options: Any) -> Any:
    """What `read` makes of a file.

    Raises:
      BadInput: The file is damaged.
    """
    pa = _pyarrow()
    try:
        return read(path, **options)
    except pa.ArrowException as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"{path}: cannot be read ({first}); copy or download it again") from error


def _labels(paths: list[Path], columns: _Columns) -> list[Any]:
    """The labels of a split as its files have them: numbers, words, or None."""
    read = _pyarrow().parquet.read_table
    return [
        label for path in paths for label in _reading(path, read, columns=[columns.label])[columns.label].to_pylist()
    ]


@dataclass(frozen=True, eq=False)
class _Found:
    """A set in parquet files.

    Attributes:
      columns: Of the training split.
      classes: Their names; None where they go by their numbers.
      count: How many classes there are.
      paths: Files of the training split and of the one tested on, which are the same where images are held out.
      labels: int [N], of the rows of each.
      used: bool [N], which rows of each are used.
      notes: What is unusual, in lines for people.
    """

    columns: _Columns
    classes: tuple[str, ...] | None
    count: int
    paths: tuple[tuple[Path, ...], tuple[Path, ...]]
    labels: tuple[np.ndarray, np.ndarray]
    used: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...]


def _find(config: DataConfig) -> _Found:
    """Find the splits, the columns and the labels.

    Raises:
      BadInput, FileNotFoundError: The files are not as they should be.
    """
    splits = _splits(config)
    train = next((name for name in TRAIN_NAMES if name in splits), None)
    parent = data_folder(config.dir, "")
    require(train, f"{parent}: no split train: there are {', '.join(splits)}; rename the files, or correct data.dir")
    assert train is not None
    columns = _columns(splits[train][0], config)
    raw = {name: _labels(paths, columns) for name, paths in splits.items()}
    labelled = {name: any(label is not None and label != -1 for label in values) for name, values in raw.items()}
    names = columns.names
    if names is None and isinstance(next((x for x in raw[train] if x is not None), 0), str):
        names = tuple(sorted({label for label in raw[train] if label is not None}))
    numbers = {
        name: _numbers(values, names, f"{parent}, split {name}") for name, values in raw.items() if labelled[name]
    }
    require(train in numbers, f"{parent}, split {train}: no row has a label; set data.label to another column")
    first = int(names is None and numbers[train][numbers[train] >= 0].min() == 1)
    count = len(names) if names else int(numbers[train].max()) + 1 - first
    for name, labels in numbers.items():
        check_labels(labels[labels >= 0], count, f"{parent}, split {name}", first=first)
        labels[labels >= 0] -= first
    names = names or (tuple(map(str, range(1, count + 1))) if first else None)
    tests = [name for name in ((config.test_split or "").lower(), *TEST_NAMES) if name in numbers]
    unused = [name for name in splits if name not in (train, *tests[: config.holdout is None])]
    notes = [f"not tested on, split {name}{'' if labelled[name] else ', which has no labels'}" for name in unused]
    if config.holdout is None:
        require(
            tests and (config.test_split is None or tests[0] == config.test_split.lower()),
            f"{parent}: no split {config.test_split or 'test'} with labels: there are {', '.join(splits)}; set "
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
    paths = tuple(splits[chosen[0]]), tuple(splits[chosen[1]])
    return _Found(columns, names, count, paths, (numbers[chosen[0]], numbers[chosen[1]]), used, tuple(notes))


def _numbers(labels: list[Any], names: tuple[str, ...] | None, where: str) -> np.ndarray:
    """Labels as int32 [N], -1 where there is none.

    Raises:
      BadInput: A word is none of the classes' names.
    """
    of = {name: i for i, name in enumerate(names or ())}
    unknown = next((label for label in labels if isinstance(label, str) and label not in of), None)
    require(unknown is None, f"{where}: label {unknown!r}: no class of that name in train; correct or remove such rows")
    found = [of[label] if isinstance(label, str) else -1 if label is None else label for label in labels]
    return np.array(found, np.int32)


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
    files = {split: _image_files(split, found.columns.image) for split in found.paths}
    used = [np.flatnonzero(rows) for rows in found.used]
    train, test = (
        Rows(files[found.paths[i]], found.labels[i][used[i]], used[i], str(found.paths[i][0])) for i in (0, 1)
    )
    return Stream(train, test, *sampled_moments(train, config))


def _image_files(paths: tuple[Path, ...], name: str) -> Any:
    """The column of the image files of a split, by its name.

    Raises:
      BadInput: It has none.
    """
    pa = _pyarrow()
    read = pa.parquet.read_table
    column = pa.concat_tables([_reading(path, read, columns=[name]) for path in paths])[name]
    if pa.types.is_struct(column.type):
        column = pa.compute.struct_field(column, "bytes")
    require(
        column.null_count < len(column),
        f"{paths[0]}: column {name} has names of image files and no files: expected their bytes; write the set with "
        f"the files in it",
    )
    return column


parquet = Source("parquet", _describe, _load, splits=True)
