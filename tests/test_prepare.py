"""Official archives to tensorflow-datasets' files and back: CIFAR-10, CIFAR-100, ImageNet; nothing half done."""

import gzip
import io
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_makers import (
    CIFAR10_NAMES,
    SYNSETS,
    arguments,
    cifar10_files,
    make_cifar10,
    make_cifar100,
    make_imagenet,
    sha256,
    write_tar,
)
from PIL import Image
from tensorflow_datasets.core import shuffle

from lpjax.config.schema import DataConfig
from lpjax.data import archives, prepare, python_cifar, tfds_sets
from lpjax.data.source import Spec

ROOT = Path(__file__).parent.parent


def run(capsys, *argv):
    code = prepare.main(["prepare", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, name, source, data_dir):
    """The message; nothing may be left."""
    code, out, err = run(capsys, *arguments(name, source, data_dir))
    assert (code, out) == (2, "")
    assert nothing_prepared(data_dir)
    return err


def nothing_prepared(data_dir):
    return not any(path.is_file() for path in data_dir.rglob("*"))


def command(name, source, data_dir):
    """As a person runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "lpjax.data.prepare", *arguments(name, source, data_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """{name: folder of the prepared set, training split, test split}."""
    made = {}
    for name, make in (("cifar10", make_cifar10), ("cifar100", make_cifar100)):
        archive, train, test = make(tmp_path_factory.mktemp(name))
        done = command(name, archive, archive.parent / "data")
        assert f"({len(train.labels)} train, {len(test.labels)} test; the whole set has" in done.stdout
        assert "train examples" in done.stderr, "progress is shown"
        made[name] = archive.parent / "data", train, test
    return made


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folder of the prepared set, images of the training and of the validation split."""
    source, train, test = make_imagenet(tmp_path_factory.mktemp("imagenet"), cmyk=True)
    assert (
        "(18 train, 6 validation; the whole set has 1281167 and 50000)"
        in command("imagenet2012", source, source / "data").stdout
    )
    return source / "data", train, test


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_as_tensorflow_datasets_and_as_we_read_it(name, cifar):
    folder, *splits = cifar[name]
    ours = getattr(tfds_sets, name).load(DataConfig(dir=str(folder)))
    read = (ours.train_images, ours.train_labels), (ours.test_images, ours.test_labels)
    for split, packed, (images, labels) in zip(("train", "test"), splits, read, strict=True):
        stock = tfds.data_source(name, data_dir=folder, split=split)
        assert len(stock) == len(packed.labels) == len(images)
        assert labels.dtype == np.int32
        index = [int(example["id"].decode().removeprefix(f"{split}_")) for example in stock]
        assert sorted(index) == list(range(len(index)))
        for i, example, image, label in zip(index, stock, images, labels, strict=True):
            np.testing.assert_array_equal(example["image"], packed.images[i])
            np.testing.assert_array_equal(image, packed.images[i])
            assert example["label"] == label == packed.labels[i]
            assert name == "cifar10" or example["coarse_label"] == packed.coarse[i]
    np.testing.assert_allclose(ours.mean, splits[0].images.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(ours.std, splits[0].images.std((0, 1, 2)) / 255)
    classes = tuple(CIFAR10_NAMES) if name == "cifar10" else tuple(f"fine{i}" for i in range(100))
    counts = [len(split.labels) for split in splits]
    found = getattr(tfds_sets, name).describe(DataConfig(dir=str(folder)))
    assert (found, found.class_names) == (Spec((32, 32, 3), len(classes), *counts), classes)


def test_imagenet_bytes_labels_and_names(imagenet):
    folder, *splits = imagenet
    stream = tfds_sets.imagenet2012.load(DataConfig(dir=str(folder)))
    decoders = {"image": tfds.decode.SkipDecoding()}
    for split, packed, files in zip(("train", "validation"), splits, (stream.train, stream.test), strict=True):
        expected = {image.name: (image.data, image.label) for image in packed}
        cmyk = expected.pop("n01739381_1309.JPEG", None)
        read = {files.name(i): files[i] for i in range(len(files))}
        stock = tfds.data_source("imagenet2012", data_dir=folder, split=split, decoders=decoders)
        assert {e["file_name"].decode(): (e["image"], e["label"]) for e in stock} == read
        if split == "train":
            image = Image.open(io.BytesIO(read.pop("n01739381_1309.JPEG")[0]))
            rgb = Image.open(io.BytesIO(cmyk[0])).convert("RGB")
            assert (image.mode, image.size) == ("RGB", rgb.size)
            assert np.abs(np.asarray(image, float) - np.asarray(rgb)).mean() < 2, "JPEG of quality 100"
        assert read == expected
    assert {stream.train[i][1] for i in range(len(stream.train))} == set(SYNSETS.values())
    described = tfds_sets.imagenet2012.describe(DataConfig(image_size=160, dir=str(folder)))
    assert described == Spec((160, 160, 3), 1000, 18, 6)


@pytest.fixture
def few_files():
    """The limit of open files is 1,000."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def process_wide():
    """What preparing changes for the whole process: how many files it may open, stdout, tensorflow-datasets' module."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0], sys.stdout, shuffle.tf


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_preparing_leaves_the_process_as_it_was(error, few_files, tmp_path, capsys, monkeypatch):
    before, inside = process_wide(), []

    def validation(*arguments, original=archives.imagenet_validation):
        inside.extend(process_wide())
        yield from original(*arguments)
        if error:
            raise error

    monkeypatch.setattr(archives, "imagenet_validation", validation)
    source, *_ = make_imagenet(tmp_path)
    code, _, err = run(capsys, *arguments("imagenet2012", source, tmp_path / "data"))
    assert code == (130 if error else 0)
    assert ("interrupted; nothing was prepared" in err) == nothing_prepared(tmp_path / "data") == bool(error)
    assert all(now != then for now, then in zip(inside, before, strict=True))
    assert process_wide() == before


def test_a_folder_as_the_source_and_a_second_call(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    archive, *_ = make_cifar10(tmp_path)
    argv = arguments("cifar10", archive, "~/data")
    code, out, _ = run(capsys, "cifar10", "--source=~", *argv[2:])
    assert code == 0
    assert f"--config.data.dir={tmp_path}/data" in out
    assert tfds_sets.cifar10.describe(DataConfig(dir="~/data")).num_train == 100
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    archive.unlink()
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "cifar10 is already prepared in" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == files


def test_imagenets_two_checksums(tmp_path, capsys):
    source, *_ = make_imagenet(tmp_path)
    train, validation = (sha256(source / file) for file in archives.ARCHIVES["imagenet2012"])
    argv = ["imagenet2012", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    for sums, message in (
        ([], f"ILSVRC2012_img_train.tar: sha256 is {train}, expected "),
        ([train], "--sha256 given 1 times: expected 2"),
        ([train, train], f"ILSVRC2012_img_val.tar: sha256 is {validation}, expected {train}"),
    ):
        code, _, err = run(capsys, *argv, *(f"--sha256={each}" for each in sums))
        assert code == 2
        assert message in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("batches.meta.txt", lambda data: b"cat\ndog\n", "batches.meta.txt has 2 names of classes: expec"),
        ("test_batch.bin", lambda data: data[:-1], "test_batch.bin has 92189 bytes: expected a multiple"),
        (
            "data_batch_2.bin",
            lambda data: data[:3073] + b"\x0a" + data[3074:],
            "data_batch_2.bin, label: label 10 of example 1: expected 0 to 9",
        ),
    ],
)
def test_cifar_archives_that_are_not_what_they_should_be(name, change, message, tmp_path, capsys):
    files, *_ = cifar10_files()
    files[f"cifar-10-batches-bin/{name}"] = change(files[f"cifar-10-batches-bin/{name}"])
    archive = write_tar(tmp_path / "cifar-10-binary.tar.gz", files, "w:gz")
    err = refused(capsys, "cifar10", archive, tmp_path / "data")
    assert message in err
    assert str(archive) in err


class PythonTwo(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, of which the official files are full."""

    def save_string(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string}


def two(value):
    out = io.BytesIO()
    PythonTwo(out, protocol=2).dump(value)
    return out.getvalue()


def python_version(name, members, pickled):
    """The files of the python version, from those of the binary version."""
    known, content = python_cifar.FILES[name], {Path(path).name: data for path, data in members.items()}
    binary = [file for file in content if file.endswith(".bin")]
    keys = [key.encode() for key in python_cifar.LABELS[name]]
    files = {}
    for path, file in zip([*known["train"], *known["test"]], sorted(binary, key=lambda f: "test" in f), strict=True):
        records = np.frombuffer(content[file], np.uint8).reshape(-1, 3072 + len(keys))
        labels = dict(zip(keys, records[:, : len(keys)].T.tolist(), strict=True))
        files[path] = pickled({b"data": records[:, len(keys) :].copy(), b"filenames": [b"x.png"]} | labels)
    texts = [content[file].split() for file in sorted(content) if file.endswith(".txt")]
    names = dict(zip([key.encode() for key in python_cifar.NAMES[name]], texts, strict=True))
    return files | {known["names"]: pickled(names)}


def by_columns(value):
    """A pickle whose array lies in memory column by column."""
    return pickle.dumps({key: np.asfortranarray(v) if isinstance(v, np.ndarray) else v for key, v in value.items()}, 2)


def members(archive):
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if "readme" not in member.name}


@pytest.mark.parametrize(
    "pickled",
    [two, lambda value: pickle.dumps(value, 2), pickle.dumps, by_columns],
    ids=["Python 2", "2", "new", "columns"],
)
@pytest.mark.parametrize("name, make", [("cifar10", make_cifar10), ("cifar100", make_cifar100)])
def test_the_python_version_holds_the_records_of_the_binary_one(name, make, pickled, tmp_path):
    binary = members(make(tmp_path)[0])
    layout = tfds.builder_cls(name)(data_dir=tmp_path)._cifar_info
    found = python_cifar.as_binary(name, python_version(name, binary, pickled), layout)
    content = {Path(path).name: data for path, data in binary.items()}
    assert {file: data.split() if file.endswith("txt") else data for file, data in found.items()} == {
        file: data.split() if file.endswith("txt") else data for file, data in content.items()
    }


@pytest.mark.parametrize("version", ["python archive", "python", "binary"])
def test_cifar_archives_as_they_lie_on_disks(version, tmp_path, capsys):
    archive, *_ = make_cifar10(tmp_path)
    files = members(archive)
    archive.unlink()
    if version != "binary":
        made = python_version("cifar10", files, pickle.dumps)
        files = {f"cifar-10-batches-py/{file}": data for file, data in made.items()}
    if version == "python archive":
        source = write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
        code, out, err = run(capsys, "cifar10", f"--source={source}", f"--data_dir={tmp_path / 'data'}")
        assert code == 2
        assert (
            "(the binary version) or 6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce (the python"
            in err
        )
        given = [f"--sha256={sha256(source)}"]
    else:
        source, given = tmp_path, []
        for file, data in files.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(data)
    code, out, err = run(capsys, "cifar10", f"--source={source}", f"--data_dir={tmp_path / 'data'}", *given)
    assert (code, "100 train, 30 test" in out) == (0, True), err
    assert ("unpacked files have no checksum" in out) == (not given)
    assert "the whole set has 50000 and 10000" in out


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("function", [os.mkdir, eval, np.frombuffer, tarfile.open, Path], ids=lambda f: f.__name__)
def test_a_pickle_calls_nothing(function, tmp_path):
    content = pickle.dumps({b"data": Calls(function, str(tmp_path / "made")), b"labels": []})
    with pytest.raises(
        ValueError, match=r"batch: not a file of the python version \(asks for .*, which no CIFAR file does"
    ):
        python_cifar._records("batch", content, ["labels"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "entries, message",
    [
        ({b"labels": [1]}, "no data"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "data of shape .2, 3072.: expected .1, 3072."),
        ({b"data": np.zeros((1, 3072), np.int16), b"labels": [1]}, "an array is not of unsigned bytes"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [256]}, "labels that are not 1 numbers from 0 to 255"),
        ([1], "not a file of the python version"),
    ],
)
def test_files_of_the_python_version_that_are_not_what_they_should_be(entries, message):
    with pytest.raises(ValueError, match=f"batch: .*{message}"):
        python_cifar._records("batch", pickle.dumps(entries), ["labels"])


def test_damaged_and_missing_cifar_archives(tmp_path, capsys):
    archive, *_ = make_cifar10(tmp_path)
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], gzip.compress(b"no tar inside")):
        archive.write_bytes(damaged)
        err = refused(capsys, "cifar10", archive, tmp_path / "data")
        assert f"{archive}: not a whole tar archive (" in err
        assert "download cifar-10-binary.tar.gz again from https" in err
    write_tar(archive, {"readme.html": b""}, "w:gz")
    assert "not the binary version of cifar10: no data_batch_1.bin" in refused(
        capsys, "cifar10", archive, tmp_path / "data"
    )
    archive.unlink()
    assert "no such file or folder; download" in refused(capsys, "cifar10", archive, tmp_path / "data")
    assert "found no cifar-10-binary.tar.gz;" in refused(capsys, "cifar10", tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda train, val: val.unlink(), "found no ILSVRC2012_img_val.tar; download ILSV"),
        (
            lambda train, val: shutil.copy(val, train),
            "img_train.tar: holds ILSVRC2012_val_00050000.JPEG, ILSVRC2012_val_00000005.JPEG, ",
        ),
        (
            lambda train, val: shutil.copy(train, val),
            "img_val.tar: holds n01440764.tar: expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG",
        ),
        (lambda train, val: write_tar(train, {}), "img_train.tar: holds no files"),
        (lambda train, val: write_tar(train, {"n99999999.tar": b""}), "holds n99999999.tar: expected one tar per syns"),
        (
            lambda train, val: os.truncate(train, 9000),
            "img_train.tar: not a whole tar archive (unexpected end",
        ),
    ],
)
def test_imagenet_archives_that_are_not_what_they_should_be(damage, message, tmp_path, capsys):
    source, *_ = make_imagenet(tmp_path)
    damage(*(source / f"ILSVRC2012_img_{split}.tar" for split in ("train", "val")))
    err = refused(capsys, "imagenet2012", source, tmp_path / "data")
    assert message in err
    assert "again from https://image-net.org" in err


KILLED = """
import os, signal, sys
from lpjax.data import archives, prepare
function, count = sys.argv[1], int(sys.argv[2])
original = getattr(archives, function)

def killed(*arguments):
    for i, example in enumerate(original(*arguments)):
        if i == count:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example

setattr(archives, function, killed)
prepare.main(sys.argv[2:])
"""


def test_killed_and_started_again(tmp_path, capsys, monkeypatch):
    source, *_ = make_imagenet(tmp_path)
    data_dir, config = tmp_path / "data", DataConfig(dir=str(tmp_path / "data"))
    argv = arguments("imagenet2012", source, data_dir)
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, "imagenet_validation", "3", *argv], cwd=ROOT, capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    left = [path.name for path in (data_dir / "imagenet2012").iterdir()]
    assert left, "killed in the middle: otherwise this tests nothing"
    assert all(name.startswith("incomplete.") for name in left)
    with pytest.raises(FileNotFoundError, match="is not prepared there"):
        tfds_sets.imagenet2012.load(config)
    other = data_dir / "imagenet2012" / "incomplete.ABCDEF_5.0.0"
    other.mkdir()

    def free_space(folder):
        assert list((data_dir / "imagenet2012").iterdir()) == [other], "the disk may be full of what was left"
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr(shutil, "disk_usage", free_space)
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "is prepared in" in out
    assert len(tfds_sets.imagenet2012.load(config).train) == 18
    assert {path.name for path in (data_dir / "imagenet2012").iterdir()} == {"5.1.0", other.name}, "its own only"


def test_sets_that_are_not_there(cifar, tmp_path):
    for source in (tfds_sets.cifar100, tfds_sets.imagenet2012):
        name = source.name
        unset = f"dir is unset: .* python -m lpjax.data.prepare {name} --source=ARCHIVE"
        for call in (source.load, source.describe):
            with pytest.raises(ValueError, match=unset):
                call(DataConfig())
            with pytest.raises(FileNotFoundError, match=rf"{name} is not prepared there .* --data_dir={tmp_path}"):
                call(DataConfig(dir=str(tmp_path)))
    assert not any(tmp_path.iterdir()), "looking leaves nothing behind"


@pytest.fixture
def copy(cifar, tmp_path):
    """A copy of the prepared CIFAR-10, to be damaged: its folder and the one of its version."""
    shutil.copytree(cifar["cifar10"][0], tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "cifar10" / "3.0.2"


def test_files_that_are_missing_or_damaged(copy):
    data_dir, folder = copy
    (file,) = folder.glob("cifar10-train.array_record*")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"3\.0\.2, split 'train': examples 0 to 99 cannot be read"):
        tfds_sets.cifar10.load(DataConfig(dir=str(data_dir)))
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"cifar10-train\.array_record-00000-of-00001 is missing; copy it again"
    ):
        tfds_sets.cifar10.load(DataConfig(dir=str(data_dir)))


@pytest.mark.parametrize("place", [".", "..", "../..", "../../.."])
def test_a_prepared_set_is_found_from_any_of_its_folders(place, copy):
    """Up to tensorflow-datasets' own default, a folder tensorflow_datasets in the home folder."""
    data_dir, _ = copy
    home = data_dir.rename(data_dir.with_name("tensorflow_datasets")).parent
    found = home / "tensorflow_datasets" / "cifar10" / "3.0.2" / place
    spec = tfds_sets.cifar10.describe(DataConfig(dir=str(found.resolve())))
    assert (spec.num_train, spec.num_test, spec.notes) == (100, 30, ())


def test_a_prepared_set_of_another_version(copy):
    data_dir, folder = copy
    older = folder.rename(folder.with_name("3.0.1"))
    info = older / "dataset_info.json"
    info.write_text(info.read_text().replace("3.0.2", "3.0.1"))
    spec = tfds_sets.cifar10.describe(DataConfig(dir=str(data_dir)))
    assert spec.notes == ("cifar10 is prepared in version 3.0.1: tensorflow-datasets has 3.0.2",)
    assert len(tfds_sets.cifar10.load(DataConfig(dir=str(data_dir))).train_labels) == 100


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_half_copied_set(file, copy):
    data_dir, folder = copy
    (folder / file).write_text("")
    with pytest.raises(
        ValueError, match=r"cifar10/3\.0\.2: cannot be read .*; remove it and do: python -m lpjax.data.prepare"
    ):
        tfds_sets.cifar10.describe(DataConfig(dir=str(data_dir)))


def test_members_that_lead_out_of_the_folder(capsys, tmp_path):
    """Archives are read, never extracted: whatever their members are called, no file comes of them."""
    source, data_dir = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    files, train, _ = cifar10_files()
    hostile = {"../../up.bin": b"x", f"{tmp_path}/absolute.bin": b"x", "link/inside.bin": b"x"}
    archive = write_tar(source / "cifar-10-binary.tar", {**hostile, **files})
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
    packed = source / "cifar-10-binary.tar.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes()))
    before = set(tmp_path.rglob("*"))
    code, _, err = run(capsys, *arguments("cifar10", packed, data_dir))
    assert code == 0, err
    made = set(tmp_path.rglob("*")) - before
    assert made
    assert all(path.is_relative_to(data_dir) for path in made), made
    assert len(tfds.data_source("cifar10", data_dir=data_dir, split="train")) == len(train.labels)
