"""The official archives of CIFAR-10, CIFAR-100 and ImageNet, read into the examples of tensorflow-datasets' builders.

An archive that is damaged, or another one, raises BadInput, which names it.
"""

import contextlib
import gzip
import io
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lpjax.data.python_cifar import FILES, as_binary
from lpjax.data.source import check_labels
from lpjax.data.tfds_sets import imagenet_validation_labels
from lpjax.errors import BadInput

CIFAR_URL, IMAGENET_URL = "https://www.cs.toronto.edu/~kriz/cifar.html", "https://image-net.org/download-images"
ARCHIVES = {
    "cifar10": ("cifar-10-binary.tar.gz",),
    "cifar100": ("cifar-100-binary.tar.gz",),
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}


@dataclass(frozen=True)
class CifarFiles:
    """What else than the archive of the binary version there is of a CIFAR set.

    Attributes:
      python_archive: Of the python version.
      python_sha256: Of it, in hex, as Keras has it.
      unpacked: Folders that the archives unpack into.
      test_files: Of the test split, one of which is in such a folder.
    """

    python_archive: str
    python_sha256: str
    unpacked: tuple[str, str]
    test_files: tuple[str, str]


CIFAR = {
    "cifar10": CifarFiles(
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ("cifar-10-batches-bin", "cifar-10-batches-py"),
        ("test_batch.bin", "test_batch"),
    ),
    "cifar100": CifarFiles(
        "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ("cifar-100-binary", "cifar-100-python"),
        ("test.bin", "test"),
    ),
}

Examples = Iterator[tuple[int | str, dict[str, Any]]]
"""Keys and examples as the stock builder has them; the keys decide the order of the shuffled examples."""


def download_again(name: str) -> str:
    """What to do about a bad archive of a set, for messages."""
    return f"download {' and '.join(ARCHIVES[name])} again from {IMAGENET_URL if name == 'imagenet2012' else CIFAR_URL}"


def bad(name: str, archive: Path, what: str) -> BadInput:
    """The error that an archive of a set is damaged, or another one."""
    return BadInput(f"{archive}: {what}; {download_again(name)}")


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
        raise bad(name, archive, f"not a whole tar archive ({reason})") from error


def files_in(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in an archive, each with its name without folders: archives come with and without a leading one."""
    return ((PurePosixPath(member.name).name, member) for member in tar if member.isfile())


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a file in an archive."""
    file = tar.extractfile(member)
    assert file is not None, "only regular files are asked for"
    return file.read()


def _contents(name: str, archive: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """The contents of files of an archive, or of the folder that it was unpacked into, by name."""
    if archive.is_dir():
        return {file: (archive / file).read_bytes() for file in wanted if (archive / file).is_file()}
    with open_tar(name, archive) as tar:
        # In one pass: going back in a compressed archive is to decompress it again.
        return {file: content(tar, member) for file, member in files_in(tar) if file in wanted}


def cifar_splits(builder: Any, archive: Path) -> dict[str, Examples]:
    """Examples of each split of CIFAR-10 or CIFAR-100, from an archive that is checked before they are read.

    Args:
      builder: The stock builder; its features are given the names of the classes.
      archive: The binary or the python version, or the folder that it was unpacked into.

    Raises:
      BadInput: It is damaged, or another archive.
    """
    name, features, layout = builder.name, builder.info.features, builder._cifar_info
    wanted, version = [*layout.train_files, *layout.test_files, *layout.label_files], "binary"
    python = [file for files in FILES[name].values() for file in ([files] if isinstance(files, str) else files)]
    found = _contents(name, archive, {*wanted, *python})
    if any(file in found for file in python):
        wanted, version = python, "python"
    missing = [file for file in wanted if file not in found]
    if missing:
        raise bad(name, archive, f"not the {version} version of {name}: no {', '.join(missing)}")
    if version == "python":
        try:
            found = as_binary(name, found, layout)
        except BadInput as error:
            raise bad(name, archive, str(error)) from error
    for key, file in zip(layout.label_keys, layout.label_files, strict=True):
        names, count = [line for line in found[file].decode().splitlines() if line], features[key].num_classes
        if len(names) != count:
            raise bad(name, archive, f"{file} has {len(names)} names of classes: expected {count}")
        features[key].names = names

    def records(files: list[str]) -> np.ndarray:
        bytes_of_labels = len(layout.label_keys)
        length = bytes_of_labels + 3072
        for file in files:
            if not found[file] or len(found[file]) % length:
                expected = f"a multiple of {length} (a record: {bytes_of_labels} of labels, 3072 of pixels)"
                raise bad(name, archive, f"{file} has {len(found[file])} bytes: expected {expected}")
            for byte, key in enumerate(layout.label_keys):
                labels = np.frombuffer(found[file], np.uint8)[byte::length]
                check_labels(labels, features[key].num_classes, f"{archive}: {file}, {key}")
        return np.frombuffer(b"".join(found[file] for file in files), np.uint8).reshape(-1, length)

    def examples(split: str, records: np.ndarray) -> Examples:
        from PIL import Image

        for index, record in enumerate(records):
            pixels = record[-3072:].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = dict(zip(layout.label_keys, record.tolist(), strict=False))
            image = Image.fromarray(np.ascontiguousarray(pixels))
            yield index, {"id": f"{split}_{index:05d}", "image": image, **labels}

    files = {"train": layout.train_files, "test": layout.test_files}
    return {split: examples(split, records(files[split])) for split in files}


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
            found = ", ".join(unknown[:3]) or "no files"
            raise bad("imagenet2012", archive, f"holds {found}: expected one tar per synset, n01440764.tar and so on")
        for file, member in members:
            with tarfile.open(fileobj=tar.extractfile(member)) as images:
                image_name = None
                for image_name, image in files_in(images):
                    data = content(images, image)
                    if image_name in CMYK_IMAGES or image_name in PNG_IMAGES:  # as the stock builder does
                        data = rgb_jpeg(data)
                    yield image_name, {"file_name": image_name, "image": data, "label": file.removesuffix(".tar")}
                if image_name is None:
                    raise bad("imagenet2012", archive, f"{file} holds no images")


def imagenet_validation(archive: Path, labels: Sequence[str]) -> Examples:
    """Examples of the validation images.

    Args:
      archive: A tar of them.
      labels: The synsets of images 1, 2, ..

    Raises:
      BadInput: It is damaged, or another archive.
    """
    label_of = {f"ILSVRC2012_val_{n:08d}.JPEG": label for n, label in enumerate(labels, 1)}
    with open_tar("imagenet2012", archive) as tar:
        file = None
        for file, member in files_in(tar):
            if file not in label_of:
                expected = f"expected {next(iter(label_of))} to {next(reversed(label_of))}"
                raise bad("imagenet2012", archive, f"holds {file}: {expected}")
            yield file, {"file_name": file, "image": content(tar, member), "label": label_of[file]}
        if file is None:
            raise bad("imagenet2012", archive, "holds no images")


def splits(builder: Any, paths: Sequence[Path]) -> dict[str, Examples]:
    """Examples of each split of a set.

    Args:
      builder: The stock builder.
      paths: The set's archives, in the order of `ARCHIVES`.

    Returns:
      Generators, which raise BadInput for an archive that is damaged, or another one.
    """
    if builder.name != "imagenet2012":
        return cifar_splits(builder, paths[0])
    labels, synsets = imagenet_validation_labels(), builder.info.features["label"].names
    return {"train": imagenet_train(paths[0], synsets), "validation": imagenet_validation(paths[1], labels)}
