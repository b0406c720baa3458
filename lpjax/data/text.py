"""Text as bytes: a file, a folder of files, or the sources of Python's standard library, which every installation has.

Tokens are bytes, so the vocabulary has 256.  A file is mapped into memory, so it may be larger than that; the files of
a folder are read, in the order of their names, a byte 0 behind each.  Every twentieth file is held out to be tested on;
of fewer than twenty files, the last twentieth of their bytes.
"""

import functools
import hashlib
import os
import stat
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.source import Source, Spec, Text, window_counts
from lpjax.data.tree import NO_PERMISSION, NO_TARGET, LeftOut, files_below, some
from lpjax.errors import BadInput, require
from lpjax.nn.losses import NEXT_TOKEN

VOCABULARY = 256
"""Bytes."""

HELD_OUT = 20
"""One file of so many is held out, or one byte."""

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
NOT_REGULAR = "no regular files"


@dataclass(frozen=True)
class _Found:
    """Files of a text in order, their sizes in bytes, and what is told of those left out."""

    files: tuple[Path, ...]
    sizes: tuple[int, ...]
    folder: bool
    notes: tuple[str, ...]

    @property
    def is_test(self) -> list[bool]:
        """Which files are held out; none of fewer than twenty."""
        return [i % HELD_OUT == HELD_OUT - 1 for i in range(len(self.files))]

    @property
    def counts(self) -> tuple[int, int]:
        """Bytes to train and to test on, with those behind the files of a folder."""
        sizes = [size + self.folder for size in self.sizes]
        held_out = sum(size for size, test in zip(sizes, self.is_test, strict=True) if test)
        held_out = held_out if any(self.is_test) else sum(sizes) // HELD_OUT
        return sum(sizes) - held_out, held_out


@functools.cache
def _library() -> list[Path]:
    """The sources of Python's standard library, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for path in root.rglob("*.py") if _NOT_LIBRARY.isdisjoint(path.relative_to(root).parts))
    files = sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).parts)
    require(
        bool(files),
        f"data.name=text: {root}, the standard library's folder, has no sources; set data.dir to a text",
    )
    return files


def _why_not(entry: "os.DirEntry[str]") -> str | None:
    if not os.path.exists(entry.path):
        return NO_TARGET
    if not entry.is_file():
        return NOT_REGULAR
    return None if os.access(entry.path, os.R_OK) else NO_PERMISSION


def _find(config: DataConfig) -> _Found:
    """The files of the configuration's text.

    Raises:
      BadInput, OSError: There are none, or they are no regular files.
    """
    left_out, path = LeftOut(), Path(os.path.expanduser(config.dir or "."))
    if config.dir is None:
        files: Sequence[Path] = _library()
    elif path.is_dir():
        files = files_below(path, left_out, _why_not)
    elif not path.exists():
        raise FileNotFoundError(f"data.dir={config.dir}: no such file or folder; give a text, or a folder of texts")
    else:
        files = [path]
        mode = path.stat().st_mode
        require(stat.S_ISREG(mode), f"data.dir={config.dir}: expected a regular file or a folder; copy it to a file")
    notes = tuple(left_out.in_words(path))
    require(
        bool(files),
        f"data.dir={config.dir}: no file that can be read in it: expected at least one"
        + "".join(f"; {note}" for note in notes),
    )
    sizes = tuple(file.stat().st_size for file in files)
    return _Found(tuple(files), sizes, config.dir is None or path.is_dir(), notes)


def _describe(config: DataConfig) -> Spec:
    found, T = _find(config), config.sequence
    num_train, num_test = found.counts
    for count, where in ((num_train, "to train on"), (num_test, "held out to test on, a twentieth")):
        if count <= T:
            raise BadInput(
                f"data.dir={config.dir}: {count:,} bytes {where} in {some(map(str, found.files))}: expected more than "
                f"data.sequence={T}, a window; give a longer text or lower data.sequence"
            )
    return Spec((T,), VOCABULARY, *window_counts(num_train, num_test, T), notes=found.notes, task=NEXT_TOKEN)


def _read(files: Sequence[Path]) -> np.ndarray:
    return np.frombuffer(b"".join(part for file in files for part in (file.read_bytes(), b"\0")), np.uint8)


def _load(config: DataConfig) -> Text:
    found = _find(config)
    if any(found.is_test):
        parts = [
            _read([file for file, is_test in zip(found.files, found.is_test, strict=True) if is_test == test])
            for test in (False, True)
        ]
    else:
        text = _read(found.files) if found.folder else np.memmap(found.files[0], np.uint8, mode="r")
        parts = np.split(text, [found.counts[0]])
    require(
        tuple(map(len, parts)) == found.counts,
        f"data.dir={config.dir}: the text changed while it was read; start again when it is complete",
    )
    digest = hashlib.sha256(parts[0].data)
    digest.update(parts[1].data)
    return Text(parts[0], parts[1], config.sequence, digest.hexdigest())


text = Source("text", describe=_describe, load=_load)
