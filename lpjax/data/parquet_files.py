"""What is in parquet files of images: which belong to a split, which columns they have, and their labels."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.folder import TEST_NAMES, TRAIN_NAMES
from lpjax.errors import BadInput, extra_packages, require

LABELS = ("label", "labels", "fine_label", "class", "target")
"""Names of the column of labels, the likeliest first."""

IMAGES = ("image", "img", "picture", "jpg", "png")
"""Names of the column of image files, likewise."""


def arrow() -> Any:
    """The package pyarrow, with what is used of it.

    Raises:
      BadInput: It is not installed.
    """
    with extra_packages():
        import pyarrow.compute
        import pyarrow.parquet
    return pyarrow


def read(path: Path, function: Callable[..., Any], **options: Any) -> Any:
    """Read a file by a function of pyarrow.

    Args:
      path: Of the file.
      function: Such as `pyarrow.parquet.read_table`.
      **options: Of the function.

    Raises:
      BadInput: The file is damaged, or not there.
    """
    require(path.is_file(), f"{path}: links to what is not there; copy or download it again")
    try:
        return function(path, **options)
    except (arrow().ArrowException, OSError) as error:
        with path.open("rb") as file:
            pointer = file.read(30).startswith(b"version https://git-lfs")
        remedy = "it is a pointer of git-lfs: do git lfs pull" if pointer else "copy or download it again"
        raise BadInput(f"{path}: cannot be read ({str(error).splitlines()[0]}); {remedy}") from error


# ------------------------------------------------------------------------------------------------------ files of splits


def find_splits(parent: Path, config: DataConfig) -> tuple[dict[str, list[Path]], list[str]]:
    """Find the files of each split, by its word; and those of none.

    Args:
      parent: The folder of the set.
      config: May name a split.

    Raises:
      BadInput, FileNotFoundError: There are none, some of a split are missing, or there are several sets.
    """
    files = sorted(p for p in parent.rglob("*") if p.suffix.lower() == ".parquet" and not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{parent}: no *.parquet: expected train-*.parquet and the like; correct data.dir")
    splits: dict[str, list[Path]] = {}
    others = []
    known = {*TRAIN_NAMES, *TEST_NAMES, *({config.test_split.lower()} if config.test_split else ())}
    for path in files:
        parts = path.relative_to(parent).with_suffix("").parts
        words = [re.split(r"[-_.]", part.lower())[0] for part in parts]
        if split := next((word for word in reversed(words) if word in known), "train" if len(files) == 1 else None):
            splits.setdefault(split, []).append(path)
        else:
            others.append(str(path.relative_to(parent)))
    require(splits, f"{parent}: no split's name in {files[0].name} and the like: expected train-*.parquet; rename them")
    for paths in splits.values():
        places = sorted({str(path.parent) for path in paths})
        require(len(places) == 1, f"{parent}: several sets, in {', '.join(places)}; set data.dir to one of them")
        _check_whole(paths)
    return splits, others


def _check_whole(paths: list[Path]) -> None:
    """Refuse a split of which files are missing, by the numbers in their names, such as -00000-of-00002."""
    numbers = [re.search(r"-(\d+)-of-(\d+)$", path.stem) for path in paths]
    there = {(int(found[1]), int(found[2])) for found in numbers if found}
    for count in {count for _, count in there}:
        missing = [number for number in range(count) if (number, count) not in there]
        require(
            not missing,
            f"{paths[0].parent}: {len(missing)} of {count} files like {paths[0].name} are missing, the first is number "
            f"{missing[0] if missing else 0}; download them again",
        )


# -------------------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are.

    Attributes:
      image: Name of that of the images.
      label: Name of that of the labels.
      names: Of the classes, as the file says.
    """

    image: str
    label: str
    names: tuple[str, ...] | None


def _declared(schema: Any) -> dict[str, dict[str, Any]]:
    """What the hub's metadata say of the columns; nothing where they cannot be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def find_columns(path: Path, config: DataConfig) -> Columns:
    """Find the columns, by what the hub's metadata say, their names and their types.

    Args:
      path: Of the file.
      config: May name the column of the labels.

    Raises:
      BadInput: There are none, or it cannot be told.
    """
    types = arrow().types
    schema = read(path, arrow().parquet.read_schema)
    declared = _declared(schema)
    kinds = {name: feature.get("_type") for name, feature in declared.items()}

    def holds_files(kind: Any) -> bool:
        binary = types.is_binary(kind) or types.is_large_binary(kind)
        return binary or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    def holdslabels(kind: Any) -> bool:
        words = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        return words or plain or types.is_dictionary(kind)

    found = f"{path}: columns {', '.join(schema.names)}"
    files = [column.name for column in schema if holds_files(column.type)]
    require(files, f"{found}: no image files among them: expected bytes, or a struct with bytes; convert the file")
    likely = (
        [name for name in files if kinds.get(name) == "Image"] or [name for name in IMAGES if name in files] or files
    )
    require(len(likely) == 1 or likely[0] in IMAGES or kinds.get(likely[0]) == "Image",
            f"{found}: which are the images, {' or '.join(likely)}? rename that column to image")  # fmt: skip
    simple = [column.name for column in schema if holdslabels(column.type)]
    classes = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    usual = [name for name in (*LABELS, *classes) if name in simple]
    labels = (
        [config.label] if config.label else usual or [n for n in simple if not types.is_floating(schema.field(n).type)]
    )
    expected = "expected a column of numbers or words; set data.label to its name"
    require(
        labels and labels[0] in simple, f"{found}: no labels{f' {config.label}' if config.label else ''}: {expected}"
    )
    require(
        config.label or usual or len(labels) == 1,
        f"{found}: which are the labels? set data.label to one of {', '.join(labels)}",
    )
    names = declared.get(labels[0], {}).get("names")
    return Columns(likely[0], labels[0], tuple(names) if isinstance(names, list) and names else None)


def read_labels(path: Path, config: DataConfig) -> tuple[list[Any], tuple[str, ...] | None]:
    """Read the labels in a file, words where it has names for them, None where a row has none; and the names.

    Args:
      path: Of the file.
      config: May name their column.

    Raises:
      BadInput: They are neither whole numbers nor words.
    """
    columns = find_columns(path, config)
    values = read(path, arrow().parquet.read_table, columns=[columns.label])[columns.label].to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, float) and np.isnan(value):
            values[row] = value = None
        whole = value is None or isinstance(value, str) or (float(value).is_integer() and abs(value) < 2**31)
        require(whole, f"{path}, row {row}: label {value!r}: expected a whole number or a word; set data.label")
        if isinstance(value, (bool, float)):
            values[row] = value = int(value)
        if value == -1:  # as the hub writes a label that is not told
            values[row] = None
        elif isinstance(value, int) and columns.names:
            require(
                0 <= value < len(columns.names),
                f"{path}, row {row}: label {value}: there are {len(columns.names)} names",
            )
            values[row] = columns.names[value]
    return values, columns.names
