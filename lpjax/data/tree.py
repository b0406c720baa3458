"""Image files under a folder: which there are, and what is left out and why.

What a file holds decides, not its name: files without a usual suffix are looked into.  Nothing is left out in silence:
`LeftOut` counts it.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lpjax.errors import extra_packages

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

    def in_words(self, parent: Path) -> list[str]:
        """A line for each reason, with the first names, as they are below the parent, and how many there are."""
        relative = {why: [os.path.relpath(name, parent) for name in names] for why, names in self._names.items()}
        return [f"left out, {why}: {some(names)}" for why, names in relative.items()]


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


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The image files in a folder and in those below it, in the order of their names.

    Args:
      folder: Where to look.
      left_out: Is added what is not one.
    """
    return sorted(_image_files(folder, left_out, (os.path.realpath(folder),)))


def _image_files(folder: Path, left_out: LeftOut, above: tuple[str, ...]) -> Iterator[Path]:
    """See `image_files`; above: the real paths of this folder and those above it."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        left_out.add(NO_PERMISSION, folder)
        return
    for entry in entries:
        if is_stray(entry.name):
            left_out.add(STRAY, entry.path)
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in above:
                left_out.add(LOOP, entry.path)
            else:
                yield from _image_files(folder / entry.name, left_out, (*above, real))
        elif reason := _not_image(entry):
            left_out.add(reason, entry.path)
        else:
            yield folder / entry.name


def _not_image(entry: "os.DirEntry[str]") -> str | None:
    """Why an entry that is no folder is no image; None for one that may be an image."""
    if not entry.is_file():
        return NO_TARGET if entry.is_symlink() and not os.path.exists(entry.path) else NO_IMAGE
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        return None
    with extra_packages():
        from lpjax.data.images import is_image
    try:
        return None if is_image(entry.path) else NO_IMAGE
    except PermissionError:
        return NO_PERMISSION
