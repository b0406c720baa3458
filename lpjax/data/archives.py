"""The official archives of CIFAR-10, CIFAR-100 and ImageNet, read into the examples of tensorflow-datasets' builders.

An archive that is damaged, or another one, raises BadInput, which names it.
"""

import contextlib
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lpjax.data.source import check_labels
from lpjax.data.tfds_sets import import_tfds
from lpjax.errors import BadInput

CIFAR_URL, IMAGENET_URL = "https://www.cs.toronto.edu/~kriz/cifar.html", "https://image-net.org/download-images"
ARCHIVES = {
    "cifar10": ("cifar-10-binary.tar.gz",),
    "cifar100": ("cifar-100-binary.tar.gz",),
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}

Examples = Iterator[tuple[int | str, dict[str, Any]]]
"""Keys and examples as the stock builder has them; the keys decide the order of the shuffled examples."""


@dataclass(frozen=True)
class CifarLayout:
    """Files in an archive of CIFAR.

    Attributes:
      folder: That they are in.
      train: Files of records of the training split.
      test: Of the test split.
      labels: A feature for each label byte of a record, in order, with the file of its classes' names.
    """

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
    """What to do about a bad archive of a set, for messages."""
    return f"download {' and '.join(ARCHIVES[name])} again from {IMAGENET_URL if name == 'imagenet2012' else CIFAR_URL}"


@contextlib.contextmanager
def open_tar(name: str, archive: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive of a set.

    Raises:
      BadInput: Something is wrong with the archive, also while it is read.
    """
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise BadInput(f"{archive}: not a whole tar archive ({reason}); {download_again(name)}") from error


def files_in(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in an archive, each with its name without folders: archives come with and without a leading one."""
    return ((PurePosixPath(member.name).name, member) for member in tar if member.isfile())


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a file in an archive."""
    file = tar.extractfile(member)
    assert file is not None, "only regular files are asked for"
    return file.read()


def cifar_splits(name: str, archive: Path, features: Any) -> dict[str, Examples]:
    """Examples of each split of CIFAR-10 or CIFAR-100, from an archive that is checked before they are read.

    Args:
      name: Of the set.
      archive: The binary version.
      features: The stock builder's; are given the names of the classes.

    Raises:
      BadInput: It is damaged, or another archive.
    """
    layout = CIFAR[name]
    wanted = [*layout.train, *layout.test, *layout.labels.values()]
    with open_tar(name, archive) as tar:
        # In one pass: going back in a compressed archive is to decompress it again.
        found = {file: content(tar, member) for file, member in files_in(tar) if file in wanted}
    missing = [f"{layout.folder}/{file}" for file in wanted if file not in found]
    if missing:
        raise BadInput(f"{archive}: not the binary version of {name}: no {', '.join(missing)}; {download_again(name)}")
    for key, file in layout.labels.items():
        names = [line for line in found[file].decode().splitlines() if line]
        if len(names) != features[key].num_classes:
            raise BadInput(
                f"{archive}: {file} has {len(names)} names of classes: expected {features[key].num_classes}; "
                f"{download_again(name)}"
            )
        features[key].names = names

    def records(files: tuple[str, ...]) -> np.ndarray:
        length = len(layout.labels) + 3072
        for file in files:
            if not found[file] or len(found[file]) % length:
                raise BadInput(
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
    """An image file of any format and colour space as an RGB JPEG of quality 100."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def imagenet_train(archive: Path, synsets: Sequence[str]) -> Examples:
    """Examples of the training images: 150 GB, of which one image at a time is in memory.

    Args:
      archive: A tar with one tar per synset.
      synsets: All of them.

    Raises:
      BadInput: It is damaged, or another archive.
    """
    from tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder import CMYK_IMAGES, PNG_IMAGES

    with open_tar("imagenet2012", archive) as tar:
        members = list(files_in(tar))
        unknown = [file for file, _ in members if file.removesuffix(".tar") not in synsets]
        if unknown or not members:
            raise BadInput(
                f"{archive}: holds {', '.join(unknown[:3]) or 'no files'}: expected one tar per synset, n01440764.tar "
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
                    raise BadInput(f"{archive}: {file} holds no images; {download_again('imagenet2012')}")


def imagenet_validation(archive: Path, labels: Sequence[str]) -> Examples:
    """Examples of the validation images.

    Args:
      archive: A tar of them.
      labels: The synsets of images 1, 2, ..

    Raises:
      BadInput: It is damaged, or another archive.
    """
    with open_tar("imagenet2012", archive) as tar:
        empty = True
        for file, member in files_in(tar):
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", file)
            if not match or not 1 <= int(match[1]) <= len(labels):
                raise BadInput(
                    f"{archive}: holds {file}: expected ILSVRC2012_val_00000001.JPEG to "
                    f"ILSVRC2012_val_{len(labels):08d}.JPEG; {download_again('imagenet2012')}"
                )
            empty = False
            yield file, {"file_name": file, "image": content(tar, member), "label": labels[int(match[1]) - 1]}
        if empty:
            raise BadInput(f"{archive}: holds no images; {download_again('imagenet2012')}")


def splits(name: str, paths: Sequence[Path], features: Any) -> dict[str, Examples]:
    """Examples of each split of a set.

    Args:
      name: Of the set.
      paths: Its archives, in the order of `ARCHIVES`.
      features: The stock builder's.

    Returns:
      Generators, which raise BadInput for an archive that is damaged, or another one.
    """
    if name != "imagenet2012":
        return cifar_splits(name, paths[0], features)
    labels = import_tfds().core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    train, validation = imagenet_train(paths[0], features["label"].names), imagenet_validation(paths[1], labels)
    return {"train": train, "validation": validation}
