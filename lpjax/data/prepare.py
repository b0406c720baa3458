"""Turns a set's official archives into tensorflow-datasets' array_record files, without TensorFlow.

python -m lpjax.data.prepare NAME --source=PATH --data_dir=DIR [--sha256=HEX ...]

The stock builders prepare with TensorFlow only.  What is written here is read by the stock `tfds.data_source(NAME)`:
the stock builder itself writes it, only the reading of the archives is ours.

Exit codes: 0 done, or already prepared; 1 a fault of lpjax or of the system; 2 bad input; 130 interrupted (Ctrl-C).
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np

from lpjax.data.source import check_labels
from lpjax.data.tfds_sets import allow_open_files, import_tfds, is_prepared, open_set, set_folder

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130

CIFAR_URL, IMAGENET_URL = "https://www.cs.toronto.edu/~kriz/cifar.html", "https://image-net.org/download-images"
ARCHIVES = {
    "cifar10": ("cifar-10-binary.tar.gz",),
    "cifar100": ("cifar-100-binary.tar.gz",),
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}

Examples = Iterator[tuple[int | str, dict[str, Any]]]
"""Key, which decides the place among the shuffled examples, and example: both as the stock builder has them."""


@dataclass(frozen=True)
class CifarLayout:
    """Files in the archive.  labels: of each label byte of a record, the feature and the file of its classes' names."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: dict[str, str]


CIFAR = {
    "cifar10": CifarLayout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        {"label": "batches.meta.txt"},
    ),
    "cifar100": CifarLayout(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}


def download_again(name: str) -> str:
    return f"download {' and '.join(ARCHIVES[name])} again from {IMAGENET_URL if name == 'imagenet2012' else CIFAR_URL}"


def find_archives(name: str, source: Path) -> list[Path]:
    if not source.exists():
        raise FileNotFoundError(f"--source={source}: no such file or folder; {download_again(name)}")
    if source.is_file() and len(ARCHIVES[name]) == 1:
        return [source]
    paths = [source / file for file in ARCHIVES[name]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"--source={source}: expected a folder with {' and '.join(ARCHIVES[name])}, "
            f"found no {' and no '.join(missing)}; {download_again(name)}"
        )
    return paths


def check_sha256(name: str, archive: Path, expected: str) -> None:
    from tqdm import tqdm

    digest = hashlib.sha256()
    size, bar = archive.stat().st_size, {"unit": "B", "unit_scale": True, "leave": False}
    with archive.open("rb") as file, tqdm(total=size, desc=f"Checking {archive.name}", **bar) as progress:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            progress.update(len(chunk))
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{archive}: sha256 is {digest.hexdigest()}, expected {expected}: damaged, or not the official archive; "
            f"{download_again(name)}, or say --sha256={digest.hexdigest()} if you packed it yourself"
        )


@contextlib.contextmanager
def open_tar(name: str, archive: Path) -> Iterator[tarfile.TarFile]:
    """Whatever is wrong with the archive while it is open becomes a ValueError that names it."""
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise ValueError(f"{archive}: not a whole tar archive ({reason}); {download_again(name)}") from error


def files_in(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Files by their last name: archives are packed with and without a leading folder."""
    return ((PurePosixPath(member.name).name, member) for member in tar if member.isfile())


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only regular files are asked for"
    return file.read()


def cifar_splits(name: str, archive: Path, features: Any) -> dict[str, Examples]:
    """Generators of the examples; sets the names of the classes in `features`.  All is checked before it returns."""
    layout = CIFAR[name]
    wanted = [*layout.train, *layout.test, *layout.labels.values()]
    with open_tar(name, archive) as tar:
        # In one pass: going back in a compressed archive is to decompress it again.
        found = {file: content(tar, member) for file, member in files_in(tar) if file in wanted}
    missing = [f"{layout.folder}/{file}" for file in wanted if file not in found]
    if missing:
        raise ValueError(
            f"{archive}: not the binary version of {name}: no {', '.join(missing)}; {download_again(name)}"
        )
    for key, file in layout.labels.items():
        names = [line for line in found[file].decode().splitlines() if line]
        if len(names) != features[key].num_classes:
            raise ValueError(
                f"{archive}: {file} has {len(names)} names of classes: expected {features[key].num_classes}; "
                f"{download_again(name)}"
            )
        features[key].names = names

    def records(files: tuple[str, ...]) -> np.ndarray:
        length = len(layout.labels) + 3072
        for file in files:
            if not found[file] or len(found[file]) % length:
                raise ValueError(
                    f"{archive}: {file} has {len(found[file])} bytes: expected a multiple of {length} (a record: "
                    f"{len(layout.labels)} of labels, 3072 of pixels); {download_again(name)}"
                )
            for byte, key in enumerate(layout.labels):
                labels = np.frombuffer(found[file], np.uint8)[byte::length]
                check_labels(labels, features[key].num_classes, f"{archive}: {file}, {key}")
        return np.concatenate([np.frombuffer(found[file], np.uint8).reshape(-1, length) for file in files])

    def examples(split: str, records: np.ndarray) -> Examples:
        from PIL import Image

        for index, record in enumerate(records):
            pixels = record[len(layout.labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = dict(zip(layout.labels, record.tolist(), strict=False))
            image = Image.fromarray(np.ascontiguousarray(pixels))
            yield index, {"id": f"{split}_{index:05d}", "image": image, **labels}

    return {split: examples(split, records(getattr(layout, split))) for split in ("train", "test")}


def rgb_jpeg(image: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def imagenet_train(archive: Path, synsets: Sequence[str]) -> Examples:
    """From a tar with one tar per synset; 150 GB, of which one image at a time is in memory."""
    from tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder import CMYK_IMAGES, PNG_IMAGES

    with open_tar("imagenet2012", archive) as tar:
        members = list(files_in(tar))
        strange = [file for file, _ in members if file.removesuffix(".tar") not in synsets]
        if strange or not members:
            raise ValueError(
                f"{archive}: holds {', '.join(strange[:3]) or 'no files'}: expected one tar per synset, n01440764.tar "
                f"and so on; {download_again('imagenet2012')}"
            )
        for file, member in members:
            with tarfile.open(fileobj=tar.extractfile(member)) as images:
                empty = True
                for image_name, image in files_in(images):
                    data, empty = content(images, image), False
                    if image_name in CMYK_IMAGES or image_name in PNG_IMAGES:  # as the stock builder does
                        data = rgb_jpeg(data)
                    yield image_name, {"file_name": image_name, "image": data, "label": file.removesuffix(".tar")}
                if empty:
                    raise ValueError(f"{archive}: {file} holds no images; {download_again('imagenet2012')}")


def imagenet_validation(archive: Path, labels: Sequence[str]) -> Examples:
    """labels: synset of image 1, 2, .."""
    with open_tar("imagenet2012", archive) as tar:
        empty = True
        for file, member in files_in(tar):
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", file)
            if not match or not 1 <= int(match[1]) <= len(labels):
                raise ValueError(
                    f"{archive}: holds {file}: expected ILSVRC2012_val_00000001.JPEG to "
                    f"ILSVRC2012_val_{len(labels):08d}.JPEG; {download_again('imagenet2012')}"
                )
            empty = False
            yield file, {"file_name": file, "image": content(tar, member), "label": labels[int(match[1]) - 1]}
        if empty:
            raise ValueError(f"{archive}: holds no images; {download_again('imagenet2012')}")


def imagenet_splits(archives: Sequence[Path], features: Any) -> dict[str, Examples]:
    tfds = import_tfds()
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    train, validation = archives
    return {
        "train": imagenet_train(train, features["label"].names),
        "validation": imagenet_validation(validation, labels),
    }


def check_space(data_dir: Path, archives: Sequence[Path]) -> None:
    """The prepared set takes about as much as its archives."""
    needed = sum(archive.stat().st_size for archive in archives)
    there = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"--data_dir={data_dir}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB; make room there, or "
            f"choose another disk"
        )


@contextlib.contextmanager
def files_without_tensorflow() -> Iterator[None]:
    """tensorflow-datasets sorts more than 1 GB in 1,000 files, which it opens by TensorFlow: give it Python's open."""
    from tensorflow_datasets.core import shuffle

    theirs = shuffle.tf
    gfile = SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
    shuffle.tf = SimpleNamespace(io=SimpleNamespace(gfile=gfile), errors=SimpleNamespace(ResourceExhaustedError=()))
    allow_open_files()
    try:
        yield
    finally:
        shuffle.tf = theirs


def remove_unfinished(folder: Path) -> None:
    """What a killed preparation of this set left: tensorflow-datasets writes to `incomplete.*`, then renames."""
    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(left)


def write(builder: Any, splits: dict[str, Examples], folder: Path) -> None:
    """All or nothing."""
    builder._split_generators = lambda manager: splits
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
    """What was done, in a line.  sha256: of the archives, instead of the official ones."""
    folder = set_folder(name, data_dir)
    if is_prepared(folder):
        open_set(name, data_dir)
        return f"{name} is already prepared in {folder}; to prepare it again remove that folder first"
    if folder.exists():
        raise FileExistsError(f"{folder}: exists, but is no finished data set; remove it and try again")
    archives = find_archives(name, source)
    builder = import_tfds().builder_cls(name)(data_dir=os.fspath(data_dir))
    official = {url.rpartition("/")[2]: info.checksum for url, info in builder.url_infos.items()}
    expected = [digest.lower() for digest in sha256] or [official[file] for file in ARCHIVES[name]]
    if len(expected) != len(archives):
        raise ValueError(
            f"--sha256 given {len(expected)} times: expected {len(archives)}, for {' and '.join(ARCHIVES[name])}"
        )
    for archive, digest in zip(archives, expected, strict=True):
        check_sha256(name, archive, digest)
    remove_unfinished(folder)
    check_space(data_dir, archives)
    if name == "imagenet2012":
        splits = imagenet_splits(archives, builder.info.features)
    else:
        splits = cifar_splits(name, archives[0], builder.info.features)
    write(builder, splits, folder)
    counts = ", ".join(f"{split.num_examples} {name}" for name, split in builder.info.splits.items())
    return (
        f"{name} is prepared in {folder} ({counts}); train with --config.data.name={name} --config.data.dir={data_dir}"
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lpjax.data.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(ARCHIVES), help="the data set")
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="the archive, or the folder of the archives under their official names: "
        + "; ".join(f"{name}: {', '.join(files)}" for name, files in ARCHIVES.items()),
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="where to write: config.data.dir of a run")
    parser.add_argument(
        "--sha256",
        action="append",
        default=[],
        metavar="HEX",
        help="the archive's sha256 where it is not the official one; once per archive, in the order above",
    )
    arguments = parser.parse_args(argv[1:])
    try:
        print(prepare(arguments.name, arguments.source, arguments.data_dir, arguments.sha256))
    except (ValueError, OSError) as error:
        print(f"lpjax.data.prepare: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("lpjax.data.prepare: interrupted; nothing was prepared", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
