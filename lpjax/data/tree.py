"""Image files under the folder of a split: which there are, of which classes, and what is left out and why.

What a file holds decides, not its name: files without a usual suffix are looked into.  Nothing is left out in silence:
`LeftOut` counts it.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpjax.errors import extra_packages, require

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})
"""Files of these are taken for images without a look; one that is none is counted when it is decoded."""

_STRAYS = frozenset({"__macosx", "__pycache__", "@eadir", "#recycle", "lost+found", "$recycle.bin", "thumbs.db",
                     "system volume information", "desktop.ini"})  # fmt: skip
"""What archives and disks add, in lower case."""

STRAY, NO_IMAGE = "hidden, or added by an archive or a disk", "no images in a format that is read"
NO_TARGET, NO_PERMISSION = "links to what is not there", "may not be read"
LOOP, BESIDE = "links to a folder that they are in", "in no class folder"
UNUSED = "in no folder of a split"


class LeftOut:
    """What is not used of a data set, by the reason."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, path: str | os.PathLike[str]) -> None:
        """Count a file, or a folder with all that is in it."""
        self._names.setdefault(reason, []).append(os.fspath(path))

    def count(self, *reasons: str) -> int:
        """How many were left out for these reasons."""
        return sum(len(self._names.get(reason, ())) for reason in reasons)

    def in_words(self, parent: Path | None) -> list[str]:
        """A line for each reason, with the first names, as they are below the parent if there is one, and the count."""

        def shown(name: str) -> str:
            return os.path.relpath(name, parent) if parent else name

        return [f"left out, {why}: {some(map(shown, names))}" for why, names in self._names.items()]


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names of several and how many there are, such as "a.txt, b.txt, c.txt, .. (7)"."""
    names = sorted(names)
    return f"{', '.join(names[:most])}{', ..' if len(names) > most else ''} ({len(names):,})"


def is_stray(name: str) -> bool:
    """Whether a name is of what is no part of a set: hidden, or added by an archive or a disk."""
    return name.startswith(".") or name.lower() in _STRAYS


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, strays apart, by name.

    Raises:
      OSError: The folder may not be read.
    """
    return sorted(path for path in folder.iterdir() if not is_stray(path.name) and path.is_dir())


def files_below(folder: Path, left_out: LeftOut, why_not: Callable[["os.DirEntry[str]"], str | None]) -> list[Path]:
    """The files in a folder and in those below it, in the order of their names.

    Args:
      folder: Where to look.
      left_out: Is added what is not used.
      why_not: Why an entry that is no folder is not used; None for one that is.
    """
    found: list[Path] = []
    todo: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while todo:  # as deep as it goes
        place, above = todo.pop()
        try:
            entries = list(os.scandir(place))
        except PermissionError:
            left_out.add(NO_PERMISSION, place)
            continue
        for entry in entries:
            if is_stray(entry.name):
                left_out.add(STRAY, entry.path)
            elif _is_folder(entry):
                real = os.path.realpath(entry.path)
                if real in above:
                    left_out.add(LOOP, entry.path)
                else:
                    todo.append((place / entry.name, (*above, real)))
            elif reason := why_not(entry):
                left_out.add(reason, entry.path)
            else:
                found.append(place / entry.name)
    return sorted(found)


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """`files_below` that are images."""
    return files_below(folder, left_out, _not_image)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _not_image(entry: "os.DirEntry[str]") -> str | None:
    """Why an entry that is no folder is no image; None for one that may be an image."""
    if not os.path.exists(entry.path):
        return NO_TARGET
    if not entry.is_file():
        return NO_IMAGE
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        return None
    with extra_packages():
        from lpjax.data.images import is_image
    try:
        return None if is_image(entry.path) else NO_IMAGE
    except PermissionError:
        return NO_PERMISSION


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

    def only(self, positions: Sequence[int]) -> "Files":
        """The files at some positions."""
        return Files([self.paths[i] for i in positions], [self.labels[i] for i in positions])


@dataclass(frozen=True, eq=False)
class Split:
    """The image files of a folder of class sub-folders.

    Attributes:
      folder: It.
      classes: The files of each class, by its name, in alphabetical order; a class folder may have none.
      beside: Files in no class folder.
    """

    folder: Path
    classes: dict[str, list[Path]]
    beside: list[Path]

    def files(self, classes: Sequence[str]) -> Files:
        """The files of the classes, labelled by the classes' positions."""
        pairs = [(path, label) for label, name in enumerate(classes) for path in self.classes.get(name, ())]
        return Files([path for path, _ in pairs], [label for _, label in pairs])

    def in_words(self) -> str:
        """What is in the folder, such as "test: 3 images in no class folder"."""
        filled = [name for name, files in self.classes.items() if files]
        inside = sum(len(self.classes[name]) for name in filled)
        found = {f"in sub-folders {some(filled)}": inside, "in no class folder": len(self.beside)}
        return f"{self.folder.name}: {' and '.join(f'{n:,} images {where}' for where, n in found.items() if n)}"


def read_split(folder: Path, left_out: LeftOut) -> Split:
    """Look through the folder of a split.

    Args:
      folder: It.
      left_out: Is added what is no image.

    Raises:
      BadInput: Two class folders have one name, in two Unicode forms, or one links to what is not there.
    """
    names: dict[str, str] = {}
    for path in folder.iterdir():
        require(
            path.exists() or path.suffix.lower() in SUFFIXES or is_stray(path.name),
            f"{path}: links to what is not there: expected a class folder; is a disk not mounted? restore or remove it",
        )
    for path in folders_in(folder):
        # In one form, and sorted by it: copies between systems change it, and must not change the labels.
        name = unicodedata.normalize("NFC", path.name)
        require(
            name not in names,
            f"{path}: the second class folder of this name, in another Unicode form; put them into one",
        )
        names[name] = path.name
    found: dict[str, list[Path]] = {path: [] for path in names.values()}
    beside: list[Path] = []
    for path in image_files(folder, left_out):
        first, *deeper = path.relative_to(folder).parts
        (found[first] if deeper else beside).append(path)
    return Split(folder, {name: found[names[name]] for name in sorted(names)}, beside)
