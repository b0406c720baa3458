"""A folder of class sub-folders of image files: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val).

Classes are the names of the sub-folders of train, in alphabetical order.  Hidden files and folders do not count.
"""

from dataclasses import dataclass
from pathlib import Path

from lpjax.config.schema import DataConfig
from lpjax.data.source import Source, Spec, Stream, data_folder
from lpjax.errors import BadInput, extra_packages

CONTENT = "train/CLASS/*.jpg and test/CLASS/*.jpg (or val)"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True, eq=False)
class Files:
    """`ImageFiles` on disk.

    Attributes:
      paths: Of the files.
      labels: Of each file.
    """

    paths: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        return self.paths[position].read_bytes(), self.labels[position]

    def name(self, position: int) -> str:
        """The file's path."""
        return str(self.paths[position])


def _splits(config: DataConfig) -> tuple[list[str], Files, Files]:
    """Names of the classes, and the files of the training and of the test split.

    Raises:
      BadInput, FileNotFoundError: The folder is not laid out as it should be.
    """
    parent = data_folder(config.dir, f"set data.dir to the folder with {CONTENT}")
    train = parent / "train"
    tests = [parent / name for name in TEST_NAMES if (parent / name).is_dir()]
    if not train.is_dir() or not tests:
        missing = "train" if not train.is_dir() else " or ".join(TEST_NAMES)
        raise FileNotFoundError(f"{parent}: no folder {missing}: expected {CONTENT}; make it, or correct data.dir")
    classes = _sub_folders(train)
    unknown = sorted(set(_sub_folders(tests[0])) - set(classes))
    if unknown:
        raise BadInput(
            f"{tests[0] / unknown[0]}: no class of that name in train: expected one of its {len(classes)} sub-folders; "
            f"rename or remove it"
        )
    return classes, _files(train, classes), _files(tests[0], classes)


def _sub_folders(split: Path) -> list[str]:
    return sorted(path.name for path in split.glob("[!.]*") if path.is_dir())


def _files(split: Path, classes: list[str]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (split / name).glob("[!.]*") if path.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise BadInput(
            f"{split}: the split is empty: expected CLASS/*.jpg with at least one image; add images, or correct "
            f"data.dir"
        )
    return Files(paths, labels)


def _describe(config: DataConfig) -> Spec:
    classes, train, test = _splits(config)
    shape = (config.image_size, config.image_size, config.channels)
    return Spec(shape, len(classes), len(train), len(test), tuple(classes))


def _load(config: DataConfig) -> Stream:
    with extra_packages():
        from lpjax.data.images import sampled_moments
    _, train, test = _splits(config)
    return Stream(train, test, *sampled_moments(train, config))


folder = Source("folder", _describe, _load)
