"""Files of the exact layout of the published sets, with few and random images; what is in them is returned."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lpjax.data import archives

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Split(NamedTuple):
    """images [N, 32, 32, 3] uint8, labels [N] int32: the fine ones of CIFAR-100; coarse [N] as well there."""

    images: np.ndarray
    labels: np.ndarray
    coarse: np.ndarray


class ImageFile(NamedTuple):
    name: str
    label: int
    data: bytes


def write_tar(path, files, mode="w"):
    """A tar of {name: bytes}."""
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def cifar_split(count, seed, classes=10):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, classes, count).astype(np.int32), rng.integers(0, 20, count).astype(np.int32))


def cifar_records(split, coarse=False):
    labels = [split.coarse, split.labels] if coarse else [split.labels]
    pixels = split.images.transpose(0, 3, 1, 2).reshape(len(split.images), 3072)
    return np.concatenate([np.stack(labels, 1).astype(np.uint8), pixels], 1).tobytes()


def cifar10_files(per_batch=20, num_test=30, seed=0):
    """Members of cifar-10-binary.tar.gz, the training and the test split."""
    train, test = cifar_split(5 * per_batch, seed), cifar_split(num_test, seed + 1)
    batches = [Split(*(part[i * per_batch :][:per_batch] for part in train)) for i in range(5)]
    files = {f"data_batch_{i}.bin": cifar_records(batch) for i, batch in enumerate(batches, 1)}
    files |= {
        "test_batch.bin": cifar_records(test),
        "batches.meta.txt": ("\n".join(CIFAR10_NAMES) + "\n\n").encode(),
        "readme.html": b"<html></html>",
    }
    return {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}, train, test


def make_cifar10(folder, per_batch=20, num_test=30, seed=0):
    """The archive's path, the training and the test split."""
    files, train, test = cifar10_files(per_batch, num_test, seed)
    return write_tar(Path(folder) / "cifar-10-binary.tar.gz", files, "w:gz"), train, test


def make_cifar100(folder, num_train=50, num_test=30, seed=0):
    """The archive's path, the training and the test split."""
    train, test = cifar_split(num_train, seed, 100), cifar_split(num_test, seed + 1, 100)
    files = {
        "train.bin": cifar_records(train, coarse=True),
        "test.bin": cifar_records(test, coarse=True),
        "coarse_label_names.txt": "".join(f"coarse{i}\n" for i in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine{i}\n" for i in range(100)).encode(),
    }
    files = {f"cifar-100-binary/{name}": data for name, data in files.items()}
    return write_tar(Path(folder) / "cifar-100-binary.tar.gz", files, "w:gz"), train, test


def encoded(image, kind="PNG", **options):
    """The file of a Pillow image, or of pixels [H, W] or [H, W, C]."""
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def jpeg(rng, mode="RGB"):
    """Random pixels of a random size."""
    height, width = rng.integers(20, 90, 2)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    return encoded(Image.frombytes(mode, (width, height), pixels.tobytes()), "JPEG")


SYNSETS = {"n01440764": 0, "n01739381": 59, "n15075141": 999}
"""Three with their labels: the first, the last, and one with an image that is CMYK (n01739381_1309.JPEG)."""

VALIDATION = {1: 65, 2: 970, 3: 230, 4: 809, 5: 516, 50000: 355}
"""Label by the image's number: `labels.txt` and `validation_labels.txt` of tensorflow-datasets, read by eye."""


def make_imagenet(folder, per_synset=6, seed=0, cmyk=False):
    """The folder of the two archives, the images of the training and of the validation split as they are in there.

    One is grey; with cmyk, n01739381_1309.JPEG is among them and CMYK, as in the official archive.
    """
    rng, folder, train, tars = np.random.default_rng(seed), Path(folder), [], {}
    for synset, label in SYNSETS.items():
        numbers = [*range(per_synset - 1), 1309 if cmyk else 1000]
        files = {f"{synset}_{number}.JPEG": jpeg(rng, "L" if number == 1 else "RGB") for number in numbers}
        if cmyk and synset == "n01739381":
            files["n01739381_1309.JPEG"] = jpeg(rng, "CMYK")
        train += [ImageFile(name, label, data) for name, data in files.items()]
        tars[f"{synset}.tar"] = write_tar(folder / "synset.tar", files).read_bytes()
    (folder / "synset.tar").unlink()
    write_tar(folder / "ILSVRC2012_img_train.tar", tars)
    # Not in the order of their numbers, as in the official archive.
    test = [ImageFile(f"ILSVRC2012_val_{n:08d}.JPEG", VALIDATION[n], jpeg(rng)) for n in reversed(VALIDATION)]
    write_tar(folder / "ILSVRC2012_img_val.tar", {image.name: image.data for image in test})
    return folder, train, test


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arguments(name, source, data_dir):
    """Of `lpjax.data.prepare`, with the checksums of what is there."""
    paths = [source] if source.is_file() else [source / file for file in archives.ARCHIVES[name]]
    sums = [f"--sha256={sha256(path)}" for path in paths if path.exists()]
    return [name, f"--source={source}", f"--data_dir={data_dir}", *sums]


def idx_bytes(values):
    """An IDX file of unsigned bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


IDX_NAMES = {"train": "train-{}-idx{}-ubyte.gz", "test": "t10k-{}-idx{}-ubyte.gz"}
"""As the official files of MNIST are called; the axes of an image file are 3 there."""


def make_idx(folder, shape=(28, 28), classes=10, counts=(30, 20), names=IDX_NAMES, first=0):
    """Four IDX files, gzipped where the name says so; {split: (images [N, *shape], labels [N])}."""
    rng, made = np.random.default_rng(0), {}
    for (split, name), count in zip(names.items(), counts, strict=True):
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = (first + np.arange(count) % classes).astype(np.uint8)
        for kind, axes, values in (("images", 3, images), ("labels", 1, labels)):
            path = Path(folder) / name.format(kind, axes)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(idx_bytes(values)))
        made[split] = images, labels
    return made


def make_folder(folder, train, test, test_name="test"):
    """DIR/SPLIT/CLASS/NAME from {"CLASS/NAME": bytes} of the two splits."""
    for split, files in (("train", train), (test_name, test)):
        for name, data in files.items():
            path = Path(folder) / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder
