"""CIFAR-10, CIFAR-100 and ImageNet as tensorflow-datasets stores them in array_record files, read without TensorFlow.

Files that `lpjax.data.prepare` or tensorflow-datasets itself wrote are the same.
"""

import io
import os
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.source import Dataset, Source, Spec, Stream, check_labels, data_folder
from lpjax.errors import BadInput, extra_packages

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, of images scaled to 0..1: those that published networks are trained with."""

OPEN_FILES = 4096
"""Enough for ImageNet: 1,024 + 64 files, all open at once.  The usual limit is 1,024; reading ImageNet raises it."""

_CHUNK = 1000
_TEST_SPLIT = {"cifar10": "test", "cifar100": "test", "imagenet2012": "validation"}


def import_tfds() -> ModuleType:
    """The package tensorflow_datasets.

    Raises:
      BadInput: It, or what it needs, is not installed.
    """
    with extra_packages():
        import array_record  # noqa: F401 - tensorflow-datasets imports it late, and then prints a banner
        import PIL  # noqa: F401 - likewise
        import tensorflow_datasets
    return tensorflow_datasets


def allow_open_files() -> None:
    """Raise the process's limit of open files to `OPEN_FILES`, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def set_folder(name: str, data_dir: str | os.PathLike[str]) -> Path:
    """The folder of the current version of a set under tensorflow-datasets' `data_dir`."""
    return Path(data_dir) / name / _version(name)


def is_prepared(folder: Path) -> bool:
    """Whether the set of a `set_folder` was prepared to its end."""
    return (folder / "dataset_info.json").is_file()


def _find(name: str, data_dir: Path) -> Path | None:
    """The folder of a set that is prepared in `data_dir`, which may be the set's own folder, or that of a version.

    The current version, else the newest there is.
    """
    data_dir = data_dir.absolute()
    parents = [data_dir / name, data_dir / "tensorflow_datasets" / name, data_dir, data_dir.parent]
    for parent in parents:
        if parent.name == name and parent.is_dir():
            prepared = [
                path for path in parent.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and is_prepared(path)
            ]
            current = [path for path in prepared if path.name == _version(name)]
            if prepared:
                return max(current or prepared, key=lambda path: tuple(map(int, path.name.split("."))))
    return None


def _version(name: str) -> str:
    return str(import_tfds().builder_cls(name).VERSION)


def imagenet_validation_labels() -> list[str]:
    """The synsets of ImageNet's validation images 1, 2, .., by the list that came with the set.

    Raises:
      BadInput: tensorflow-datasets, which has the list, is not installed.
    """
    labels: str = import_tfds().core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text()
    return labels.split()


def open_set(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The stock builder of a set that is prepared in `data_dir`, as array_record files.

    Raises:
      BadInput, FileNotFoundError: It is not prepared there, not as array_record, or files are missing; says how to
        prepare it.
    """
    remedy = f"python -m lpjax.data.prepare {name} --source=ARCHIVE --data_dir={data_dir or 'DIR'}"
    data_dir = data_folder(data_dir, f"prepare {name} with: {remedy}")
    tfds = import_tfds()
    folder = _find(name, data_dir)
    if folder is None:
        wanted = set_folder(name, data_dir)
        raise FileNotFoundError(f"data.dir={data_dir}: {name} is not prepared there (no {wanted}); do: {remedy}")
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # of a half copied or emptied folder each library on the way has its own
        raise BadInput(
            f"{folder}: cannot be read ({type(error).__name__}: {error}); remove it and do: {remedy}"
        ) from error
    formats = {found.value for found in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise BadInput(
            f"{folder}: prepared as {', '.join(sorted(formats))}: expected array_record, which is read without "
            f"TensorFlow; remove that folder or choose another data_dir and do: {remedy} "
            f"(or, with TensorFlow, tfds.builder({name!r}, file_format='array_record').download_and_prepare())"
        )
    for split in ("train", _TEST_SPLIT[name]):
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise BadInput(f"{folder}: split {split!r} is missing or empty; remove that folder and do: {remedy}")
        for file in builder.info.splits[split].filepaths:
            if not file.exists():
                raise FileNotFoundError(f"{file} is missing; copy it again, or remove that folder and do: {remedy}")
    return builder


def _files(builder: Any, split: str) -> Any:
    """The sequence of the examples of a split, images undecoded."""
    return builder.as_data_source(split=split, decoders={"image": import_tfds().decode.SkipDecoding()})


def _describe(name: str, published: Callable[[DataConfig], Spec], config: DataConfig) -> Spec:
    info = open_set(name, config.dir).info
    train, test = info.splits["train"].num_examples, info.splits[_TEST_SPLIT[name]].num_examples
    classes, found, known = tuple(info.features["label"].names), str(info.version), _version(name)
    notes = () if found == known else (f"{name} is prepared in version {found}: tensorflow-datasets has {known}",)
    return replace(published(config), num_train=train, num_test=test, class_names=classes, notes=notes)


def _in_memory(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [N, 32, 32, 3], and labels, int32 [N], of a CIFAR split."""
    from PIL import Image

    source, where = _files(builder, split), f"{builder.data_dir}, split {split!r}"
    images, labels = np.empty((len(source), 32, 32, 3), np.uint8), np.empty(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):  # many at a time: reading them one by one takes longer than decoding
        chunk = range(start, min(start + _CHUNK, len(source)))
        try:
            for position, example in zip(chunk, source.__getitems__(list(chunk)), strict=True):
                images[position] = np.asarray(Image.open(io.BytesIO(example["image"])))
                labels[position] = example["label"]
        except Exception as error:  # each library on the way has its own
            raise BadInput(
                f"{where}: examples {start} to {chunk[-1]} cannot be read ({error}); remove that folder, prepare again"
            ) from error
    check_labels(labels, builder.info.features["label"].num_classes, where)
    return images, labels


def _load_cifar(name: str, config: DataConfig) -> Dataset:
    builder = open_set(name, config.dir)
    return Dataset.of(_in_memory(builder, "train"), _in_memory(builder, "test"))


class _TfdsFiles:
    """`ImageFiles` of one split.  Reading is thread-safe: array_record keeps no position."""

    def __init__(self, builder: Any, split: str) -> None:
        self._source, self._where = _files(builder, split), f"{builder.data_dir}, split {split!r}"

    def __len__(self) -> int:
        return len(self._source)

    def _read(self, position: int) -> tuple[bytes, int, str]:
        try:
            example = self._source[position]
            return example["image"], int(example["label"]), example["file_name"].decode()
        except Exception as error:  # each library on the way has its own
            raise OSError(
                f"{self._where}: example {position} cannot be read ({error}); remove that folder, prepare again"
            ) from error

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        return self._read(position)[:2]

    def name(self, position: int) -> str:
        try:
            return self._read(position)[2]
        except OSError:  # a name is asked for when something is wrong
            return f"{self._where}, example {position}"


def _load_imagenet(config: DataConfig) -> Stream:
    builder = open_set("imagenet2012", config.dir)
    allow_open_files()  # for good: files are opened when they are first read, and read until the process ends
    train, test = _TfdsFiles(builder, "train"), _TfdsFiles(builder, "validation")
    return Stream(train, test, np.array(IMAGENET_MEAN), np.array(IMAGENET_STD))


def _imagenet_spec(config: DataConfig) -> Spec:
    return Spec((config.image_size, config.image_size, 3), 1000, 1_281_167, 50_000)


def _source(
    name: str, published: Callable[[DataConfig], Spec], load: Callable[[DataConfig], Dataset | Stream]
) -> Source:
    return Source(name, partial(_describe, name, published), load, published)


def _cifar(name: str, classes: int) -> Source:
    return _source(name, lambda config: Spec((32, 32, 3), classes, 50_000, 10_000), partial(_load_cifar, name))


cifar10 = _cifar("cifar10", 10)
cifar100 = _cifar("cifar100", 100)
imagenet2012 = _source("imagenet2012", _imagenet_spec, _load_imagenet)

SETS = {source.name: source for source in (cifar10, cifar100, imagenet2012)}
"""By name."""
