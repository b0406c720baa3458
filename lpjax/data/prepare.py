"""Turns a set's official archives into tensorflow-datasets' array_record files, without TensorFlow.

    python -m lpjax.data.prepare NAME --source=PATH --data_dir=DIR [--sha256=HEX ...]

The stock builders prepare with TensorFlow only.  What is written here is read by the stock `tfds.data_source(NAME)`:
the stock builder itself writes it, only the reading of the archives (`archives`) is ours.

Exit codes: 0 done, or already prepared; 1 a fault of lpjax or of the system; 2 bad input; 130 interrupted (Ctrl-C).
"""

import argparse
import contextlib
import hashlib
import io
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lpjax import cli, errors
from lpjax.config.command_line import local_path
from lpjax.config.schema import DataConfig
from lpjax.data.archives import ARCHIVES, CIFAR, Examples, download_again, splits
from lpjax.data.tfds_sets import SETS, allow_open_files, import_tfds, is_prepared, open_set, set_folder
from lpjax.errors import BadInput


def find_archives(name: str, source: Path) -> list[Path]:
    """The archives of a set, in the order of `ARCHIVES`; of CIFAR either version, or a folder it was unpacked into.

    Args:
      name: Of the set.
      source: The archive, or the folder with the archives under their official names; of CIFAR also an unpacked one.

    Raises:
      FileNotFoundError: Some are missing; names them.
    """
    if not source.exists():
        raise FileNotFoundError(f"--source={source}: no such file or folder; {download_again(name)}")
    if name in CIFAR:
        known = CIFAR[name]
        inside = [source / file for file in (*ARCHIVES[name], known.python_archive, *known.unpacked)]
        found = [path for path in inside if path.exists()]
        if source.is_file() or any((source / file).is_file() for file in known.test_files):
            return [source]
        if found:
            return found[:1]
    paths = [source / file for file in ARCHIVES[name]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"--source={source}: expected a folder with {' and '.join(ARCHIVES[name])}, "
            f"found no {' and no '.join(missing)}; {download_again(name)}"
        )
    return paths


def official_sha256(name: str, builder: Any) -> list[dict[str, str]]:
    """What each archive of a set may be, in the order of `ARCHIVES`: SHA-256, in hex, to words."""
    sums = {url.rpartition("/")[2]: info.checksum for url, info in builder.url_infos.items()}
    if name not in CIFAR:
        return [{sums[file]: "the official archive"} for file in ARCHIVES[name]]
    (binary,) = ARCHIVES[name]
    return [{sums[binary]: "the binary version", CIFAR[name].python_sha256: "the python version"}]


def check_sha256(name: str, archive: Path, expected: Mapping[str, str]) -> None:
    """Check that an archive is the official one, or the one the user says it is.

    Args:
      name: Of the set.
      archive: The file.
      expected: The SHA-256, in hex, of what it may be, to words.

    Raises:
      BadInput: It has another one.
    """
    from tqdm import tqdm

    digest = hashlib.sha256()
    size, bar = archive.stat().st_size, {"unit": "B", "unit_scale": True, "leave": False}
    with archive.open("rb") as file, tqdm(total=size, desc=f"Checking {archive.name}", **bar) as progress:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            progress.update(len(chunk))
    if digest.hexdigest() not in expected:
        known = " or ".join(f"{value} ({words})" for value, words in expected.items())
        raise BadInput(
            f"{archive}: sha256 is {digest.hexdigest()}, expected {known}: damaged, or not the official archive; "
            f"{download_again(name)}, or say --sha256={digest.hexdigest()} if you packed it yourself"
        )


def check_space(data_dir: Path, archives: Sequence[Path]) -> None:
    """Check that there is room for the prepared set, which takes about as much as its archives.

    Raises:
      OSError: There is less.
    """
    files = [path for archive in archives for path in (archive.iterdir() if archive.is_dir() else [archive])]
    needed = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())).free
    if free < needed:
        raise OSError(
            f"--data_dir={data_dir}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB; make room there, or "
            f"choose another disk"
        )


@contextlib.contextmanager
def files_without_tensorflow() -> Iterator[None]:
    """Lets tensorflow-datasets sort more than 1 GB: in 1,000 files at once, which it would open by TensorFlow.

    Inside, it opens them by Python's `open`, and the process may have so many files open.
    """
    from tensorflow_datasets.core import shuffle

    tensorflow, limits = shuffle.tf, resource.getrlimit(resource.RLIMIT_NOFILE)
    gfile = SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
    try:
        shuffle.tf = SimpleNamespace(io=SimpleNamespace(gfile=gfile), errors=SimpleNamespace(ResourceExhaustedError=()))
        allow_open_files()
        yield
    finally:
        shuffle.tf = tensorflow
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed preparation of this set left: tensorflow-datasets writes to `incomplete.*`, then renames.

    Args:
      folder: Of the finished set.
    """
    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(left)


def write(builder: Any, examples: dict[str, Examples], folder: Path) -> None:
    """Write a set, all of it or nothing.

    Args:
      builder: tensorflow-datasets' own, for `folder`.
      examples: Of each split.
      folder: Of the finished set.
    """
    builder._split_generators = lambda manager: examples
    try:
        with files_without_tensorflow(), contextlib.redirect_stdout(io.StringIO()):  # it prints "Downloading .."
            builder.download_and_prepare(
                file_format="array_record",
                download_dir=folder.parent / f"incomplete.downloads_{folder.name}",  # it makes the folder in any case
                download_config=import_tfds().download.DownloadConfig(try_download_gcs=False),
            )
    finally:
        remove_unfinished(folder)


def prepare(name: str, source: Path, data_dir: Path, sha256: Sequence[str] = ()) -> str:
    """Prepare a set, unless it is prepared already.

    Args:
      name: Of the set.
      source: The archive, or the folder with the archives under their official names.
      data_dir: Where to write: config.data.dir of a run.
      sha256: Of the archives, in hex, instead of the official ones.

    Returns:
      What was done, in a line.

    Raises:
      ValueError, OSError: Something is wrong with the archives or the folders; names the file.
    """
    folder = set_folder(name, data_dir)
    if is_prepared(folder):
        open_set(name, data_dir)
        return f"{name} is already prepared in {folder}; to prepare it again remove that folder first"
    if folder.exists():
        raise FileExistsError(f"{folder}: exists, but is no finished data set; remove it and try again")
    archives = find_archives(name, source)
    builder = import_tfds().builder_cls(name)(data_dir=os.fspath(data_dir))
    expected = [{digest.lower(): "as you say"} for digest in sha256] or official_sha256(name, builder)
    if len(expected) != len(archives):
        raise BadInput(
            f"--sha256 given {len(expected)} times: expected {len(archives)}, for {' and '.join(ARCHIVES[name])}"
        )
    unpacked = archives[0].is_dir()
    if unpacked and sha256:
        raise BadInput(
            f"--sha256 with the folder {archives[0]}: expected an archive; leave it out, or give the archive"
        )
    for archive, sums in zip(archives, expected, strict=True):
        if not unpacked:
            check_sha256(name, archive, sums)
    remove_unfinished(folder)
    check_space(data_dir, archives)
    write(builder, splits(builder, archives), folder)
    counts = ", ".join(f"{split.num_examples} {name}" for name, split in builder.info.splits.items())
    counts += "; unpacked files have no checksum" if unpacked else ""
    published = SETS[name].published
    whole = published(DataConfig()) if published else None
    if whole and sum(split.num_examples for split in builder.info.splits.values()) < whole.num_train + whole.num_test:
        counts += f"; the whole set has {whole.num_train} and {whole.num_test}"
    return (
        f"{name} is prepared in {folder} ({counts}); train with --config.data.name={name} --config.data.dir={data_dir}"
    )


@cli.command("interrupted; nothing was prepared")
@errors.bad_input()
def main(argv: list[str]) -> int:
    """Prepare a set as the command line says.

    Args:
      argv: The command line, the program first.

    Returns:
      The exit code, see the module's docstring.
    """
    parser = argparse.ArgumentParser(prog="python -m lpjax.data.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(ARCHIVES), help="the data set")
    names = "; ".join(f"{name}: {', '.join(files)}" for name, files in ARCHIVES.items())
    archives = f"the archive (of CIFAR also the python version, or unpacked), or the folder of the archives: {names}"
    data_dir = "where to write: config.data.dir of a run"
    sums = "the archive's sha256 where it is not the official one; once per archive, in the order above"
    parser.add_argument("--source", type=local_path, required=True, help=archives)
    parser.add_argument("--data_dir", type=local_path, required=True, help=data_dir)
    parser.add_argument("--sha256", action="append", default=[], metavar="HEX", help=sums)
    arguments = parser.parse_args(argv[1:])
    print(prepare(arguments.name, arguments.source, arguments.data_dir, arguments.sha256))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
