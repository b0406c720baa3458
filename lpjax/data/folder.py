"""A folder of class sub-folders of image files: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val).

Classes are the names of the sub-folders of train, in alphabetical order.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpjax.config import DataConfig
from lpjax.data import images
from lpjax.data.source import Source, Spec, Stream, data_folder

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
TEST_NAMES = ("test", "val", "validation")
LOOKED_AT = 1000
"""Files looked at before training, for mean and standard deviation, and whether they are in colour."""


@dataclass(frozen=True, eq=False)
class Files:
    """`ImageFiles` on disk."""

    paths: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        return self.paths[position].read_bytes(), self.labels[position]

    def name(self, position: int) -> str:
        return str(self.paths[position])


def _splits(config: DataConfig) -> tuple[list[str], Files, Files]:
    """Names of the classes, and the files of train and test."""
    content = "train/CLASS/*.jpg and test/CLASS/*.jpg (or val)"
    folder = data_folder(config, content)
    train = folder / "train"
    tests = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
    if not train.is_dir() or not tests:
        missing = "train" if not train.is_dir() else " or ".join(TEST_NAMES)
        raise FileNotFoundError(f"{folder}: no folder {missing}: expected {content}; make it, or correct data.dir")
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    return classes, _files(train, classes), _files(tests[0], classes)


def _files(split: Path, classes: list[str]) -> Files:
    unknown = sorted({path.name for path in split.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise ValueError(f"{split / unknown[0]}: no class of that name in train: expected one of its {len(classes)} "
                         f"sub-folders; rename or remove it")  # fmt: skip
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (split / name).is_dir():
            found = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in SUFFIXES)
            paths += found
            labels += [label] * len(found)
    if not paths:
        raise ValueError(f"{split}: the split is empty: expected CLASS/*.jpg with at least one image; add images, or "
                         f"correct data.dir")  # fmt: skip
    return Files(paths, labels)


def _describe(config: DataConfig) -> Spec:
    classes, train, test = _splits(config)
    shape = (config.image_size, config.image_size, config.channels)
    return Spec(shape, len(classes), len(train), len(test))


def _load(config: DataConfig) -> Stream:
    _, train, test = _splits(config)
    pixels, grey = [], []
    for i in images.evenly_spaced(train, LOOKED_AT):
        file = train[i][0]
        with contextlib.suppress(*images.DECODING_ERRORS):  # a damaged file is for training to count
            pixels.append(images.decode(file, size=32, channels=config.channels, rng=None))
            grey.append(images.is_grey(file))
    if not pixels:
        raise ValueError(f"{train.name(0)}: no image, as no file looked at: expected image files; replace them")
    if config.channels == 3 and all(grey):
        raise ValueError(f"{train.name(0)}: grey, as all files looked at: expected colour for data.channels=3; set "
                         f"data.channels=1, or use colour images")  # fmt: skip
    values = np.stack(pixels).reshape(-1, config.channels) / 255
    return Stream(train, test, values.mean(0), values.std(0))


folder = Source("folder", _describe, _load)
