"""Official archives to tensorflow-datasets' files and back: CIFAR-10, CIFAR-100, ImageNet; nothing half done."""

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_makers import (
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
from lpjax.data import archives, prepare, tfds_sets
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
        assert f"({len(train.labels)} train, {len(test.labels)} test)" in done.stdout
        assert "train examples" in done.stderr, "progress is shown"
        made[name] = archive.parent / "data", train, test
    return made


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folder of the prepared set, images of the training and of the validation split."""
    source, train, test = make_imagenet(tmp_path_factory.mktemp("imagenet"), cmyk=True)
    assert "(18 train, 6 validation)" in command("imagenet2012", source, source / "data").stdout
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


def test_the_names_of_the_classes(cifar):
    features = tfds.builder("cifar10", data_dir=cifar["cifar10"][0]).info.features
    assert features["label"].names[:2] == ["airplane", "automobile"]
    features = tfds.builder("cifar100", data_dir=cifar["cifar100"][0]).info.features
    assert (features["label"].names[99], features["coarse_label"].names[19]) == ("fine99", "coarse19")


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


def test_imagenet_from_many_threads_and_files(imagenet, few_files):
    train = tfds_sets.imagenet2012.load(DataConfig(dir=str(imagenet[0]))).train
    assert process_wide()[0] == min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
    expected = [train[i] for i in range(len(train))]
    positions = np.random.default_rng(0).integers(0, len(train), 2000).tolist()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(train.__getitem__, positions)) == [expected[i] for i in positions]


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_preparing_leaves_the_process_as_it_was(error, few_files, tmp_path, capsys, monkeypatch):
    before, inside = process_wide(), []

    def validation(*arguments, original=archives.imagenet_validation):
        inside.extend(process_wide())
        yield from original(*arguments)
        if error:
            raise error

    monkeypatch.setattr(archives, "imagenet_validation", validation)
    source, *_ = make_imagenet(tmp_path)
    assert (run(capsys, *arguments("imagenet2012", source, tmp_path / "data"))[0] == 0) == (error is None)
    assert all(now != then for now, then in zip(inside, before, strict=True))
    assert process_wide() == before


def test_more_than_memory_is_sorted_in_files(imagenet, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 1000)
    source, *_ = make_imagenet(tmp_path, cmyk=True)
    assert run(capsys, *arguments("imagenet2012", source, tmp_path / "data"))[0] == 0
    one, other = (tfds_sets.imagenet2012.load(DataConfig(dir=str(d))).train for d in (imagenet[0], tmp_path / "data"))
    assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    assert [path.name for path in (tmp_path / "data" / "imagenet2012").iterdir()] == ["5.1.0"]


def test_descriptions(cifar, imagenet):
    there = {name: DataConfig(dir=str(cifar[name][0])) for name in cifar}
    size = DataConfig(image_size=160, dir=str(imagenet[0]))
    assert tfds_sets.cifar10.describe(there["cifar10"]) == Spec((32, 32, 3), 10, 100, 30)
    assert tfds_sets.cifar100.describe(there["cifar100"]) == Spec((32, 32, 3), 100, 50, 30)
    assert tfds_sets.imagenet2012.describe(size) == Spec((160, 160, 3), 1000, 18, 6)


def test_published_sets_are_known_without_looking():
    nowhere = DataConfig(dir="no/such/folder", image_size=160)
    assert tfds_sets.cifar10.published(nowhere) == Spec((32, 32, 3), 10, 50000, 10000)
    assert tfds_sets.cifar100.published(nowhere) == Spec((32, 32, 3), 100, 50000, 10000)
    assert tfds_sets.imagenet2012.published(nowhere) == Spec((160, 160, 3), 1000, 1281167, 50000)
    assert tfds_sets.imagenet2012.published(DataConfig()).image_shape == (224, 224, 3)


def test_home(tmp_path, capsys, monkeypatch):
    make_cifar10(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    _, *sums = arguments("cifar10", tmp_path, tmp_path)[2:]
    code, out, _ = run(capsys, "cifar10", "--source=~", "--data_dir=~/data", *sums)
    assert code == 0
    assert f"--config.data.dir={tmp_path}/data" in out
    for call in (tfds_sets.cifar10.load, tfds_sets.cifar10.describe):
        call(DataConfig(dir="~/data"))


def test_a_folder_as_the_source_and_a_second_call(tmp_path, capsys):
    archive, *_ = make_cifar10(tmp_path)
    argv = arguments("cifar10", archive, tmp_path / "data")
    code, out, _ = run(capsys, "cifar10", f"--source={tmp_path}", *argv[2:])
    assert code == 0
    assert "cifar10 is prepared in" in out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    archive.unlink()
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "cifar10 is already prepared in" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == files


@pytest.mark.parametrize("name, make", [("cifar10", make_cifar10), ("cifar100", make_cifar100)])
def test_the_official_checksum_is_the_default(name, make, tmp_path, capsys):
    archive, *_ = make(tmp_path)
    official = {"cifar10": "c4a38c50a1bc5f3a", "cifar100": "58a81ae192c23a4b"}[name]
    code, _, err = run(capsys, name, f"--source={archive}", f"--data_dir={tmp_path / 'data'}")
    assert code == 2
    assert f"sha256 is {sha256(archive)}, expected {official}" in err
    assert "again from https://www.cs.toronto.edu" in err
    assert not (tmp_path / "data").exists()


def test_imagenets_two_checksums(tmp_path, capsys):
    source, *_ = make_imagenet(tmp_path)
    train, validation = (sha256(source / file) for file in archives.ARCHIVES["imagenet2012"])
    argv = ["imagenet2012", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    for sums, message in (
        ([], "ILSVRC2012_img_train.tar: sha256 is"),
        ([train], "--sha256 given 1 times: expected 2"),
        ([validation, train], "ILSVRC2012_img_train.tar: sha256 is"),
        ([train, train], "ILSVRC2012_img_val.tar: sha256 is"),
    ):
        code, _, err = run(capsys, *argv, *(f"--sha256={each}" for each in sums))
        assert code == 2
        assert message in err
    assert not (tmp_path / "data").exists()


@contextlib.contextmanager
def changed(archive):
    """The archive's files, to be changed in place."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    yield files
    write_tar(archive, files, "w:gz" if archive.suffix == ".gz" else "w")


def without(name):
    return lambda files: files.pop(f"cifar-10-batches-bin/{name}")


def with_content(name, change):
    def apply(files):
        path = f"cifar-10-batches-bin/{name}"
        files[path] = change(files[path])

    return apply


@pytest.mark.parametrize(
    "change, message",
    [
        (without("data_batch_3.bin"), "no cifar-10-batches-bin/data_batch_3.bin; download"),
        (dict.clear, "not the binary version of cifar10: no cifar-10-batches-bin/data_batch_1.bin, cifar-10-"),
        (with_content("test_batch.bin", lambda data: data[:-1]), "test_batch.bin has 92189 bytes: expected a multiple"),
        (with_content("data_batch_5.bin", lambda data: b""), "data_batch_5.bin has 0 bytes: expected a multiple"),
        (
            with_content("data_batch_2.bin", lambda data: data[:3073] + b"\x0a" + data[3074:]),
            "data_batch_2.bin, label: label 10 of example 1: expected 0 to 9",
        ),
        (
            with_content("batches.meta.txt", lambda data: b"cat\ndog\n"),
            "batches.meta.txt has 2 names of classes: expec",
        ),
    ],
)
def test_cifar_archives_that_are_not_what_they_should_be(change, message, tmp_path, capsys):
    files, *_ = cifar10_files()
    change(files)
    archive = write_tar(tmp_path / "cifar-10-binary.tar.gz", files, "w:gz")
    err = refused(capsys, "cifar10", archive, tmp_path / "data")
    assert message in err
    assert str(archive) in err


def test_a_wrong_coarse_label(tmp_path, capsys):
    archive, *_ = make_cifar100(tmp_path)
    with changed(archive) as files:
        files["cifar-100-binary/train.bin"] = b"\x14" + files["cifar-100-binary/train.bin"][1:]
    err = refused(capsys, "cifar100", archive, tmp_path / "data")
    assert "train.bin, coarse_label: label 20 of example 0: expected 0 to 19" in err


def test_damaged_and_missing_cifar_archives(tmp_path, capsys):
    archive, *_ = make_cifar10(tmp_path)
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no archive at all", b"", gzip.compress(b"no tar inside")):
        archive.write_bytes(damaged)
        err = refused(capsys, "cifar10", archive, tmp_path / "data")
        assert f"{archive}: not a whole tar archive (" in err
        assert "download cifar-10-binary.tar.gz again from https" in err
    archive.unlink()
    assert "no such file or folder; download" in refused(capsys, "cifar10", archive, tmp_path / "data")
    assert "found no cifar-10-binary.tar.gz;" in refused(capsys, "cifar10", tmp_path, tmp_path / "data")


def wrong_synset(folder):
    with changed(folder / "ILSVRC2012_img_train.tar") as files:
        files["n99999999.tar"] = files.pop("n01440764.tar")


def no_images(folder):
    with changed(folder / "ILSVRC2012_img_train.tar") as files:
        files["n01440764.tar"] = write_tar(folder / "empty.tar", {}).read_bytes()


def truncated_synset(folder):
    with changed(folder / "ILSVRC2012_img_train.tar") as files:
        files["n01440764.tar"] = files["n01440764.tar"][:700]


def truncated(file):
    def cut(folder):
        (folder / file).write_bytes((folder / file).read_bytes()[:-12000])

    return cut


def wrong_number(folder):
    with changed(folder / "ILSVRC2012_img_val.tar") as files:
        files["ILSVRC2012_val_00050001.JPEG"] = files.popitem()[1]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "ILSVRC2012_img_val.tar").unlink(), "found no ILSVRC2012_img_val.tar; download ILSV"),
        (lambda folder: (folder / "ILSVRC2012_img_train.tar").unlink(), "found no ILSVRC2012_img_train.tar; download"),
        (
            lambda folder: shutil.copy(folder / "ILSVRC2012_img_val.tar", folder / "ILSVRC2012_img_train.tar"),
            "img_train.tar: holds ILSVRC2012_val_00050000.JPEG, ILSVRC2012_val_00000005.JPEG, ",
        ),
        (
            lambda folder: shutil.copy(folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"),
            "img_val.tar: holds n01440764.tar: expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG",
        ),
        (lambda folder: write_tar(folder / "ILSVRC2012_img_train.tar", {}), "img_train.tar: holds no files"),
        (lambda folder: write_tar(folder / "ILSVRC2012_img_val.tar", {}), "img_val.tar: holds no images"),
        (wrong_synset, "img_train.tar: holds n99999999.tar: expected one tar per synset"),
        (no_images, "img_train.tar: n01440764.tar holds no images"),
        (truncated_synset, "img_train.tar: not a whole tar archive (unexpected end of data)"),
        (truncated("ILSVRC2012_img_train.tar"), "img_train.tar: not a whole tar archive (unexpected end of data)"),
        (truncated("ILSVRC2012_img_val.tar"), "img_val.tar: not a whole tar archive (unexpected end of data)"),
        (wrong_number, "img_val.tar: holds ILSVRC2012_val_00050001.JPEG: expected"),
    ],
)
def test_imagenet_archives_that_are_not_what_they_should_be(damage, message, tmp_path, capsys):
    source, *_ = make_imagenet(tmp_path)
    damage(source)
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


@pytest.mark.parametrize("split, count", [("train", 10), ("validation", 3)])
def test_killed_and_started_again(split, count, tmp_path, capsys, monkeypatch):
    source, *_ = make_imagenet(tmp_path)
    data_dir, config = tmp_path / "data", DataConfig(dir=str(tmp_path / "data"))
    argv = arguments("imagenet2012", source, data_dir)
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, f"imagenet_{split}", str(count), *argv], cwd=ROOT, capture_output=True, text=True
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


def test_ctrl_c(tmp_path, capsys, monkeypatch):
    def interrupted(archive, labels):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "imagenet_validation", interrupted)
    source, *_ = make_imagenet(tmp_path)
    code, _, err = run(capsys, *arguments("imagenet2012", source, tmp_path / "data"))
    assert code == 130
    assert "interrupted; nothing was prepared" in err
    assert nothing_prepared(tmp_path / "data")


def test_a_folder_that_is_no_finished_set_is_left_alone(tmp_path, capsys):
    archive, *_ = make_cifar10(tmp_path)
    (tmp_path / "data" / "cifar10" / "3.0.2").mkdir(parents=True)
    assert "exists, but is no finished data set; remove it" in refused(capsys, "cifar10", archive, tmp_path / "data")


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    archive, *_ = make_cifar10(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=archive.stat().st_size - 1))
    assert "GB free, expected" in refused(capsys, "cifar10", archive, tmp_path / "data")


def test_a_mistyped_command(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["prepare", "cifar11", f"--source={tmp_path}", f"--data_dir={tmp_path}"])
    assert "invalid choice: 'cifar11'" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record", "PIL"])
def test_packages_that_are_not_installed(package, tmp_path, capsys, monkeypatch):
    archive, *_ = make_cifar10(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'lpjax[data]'" in refused(capsys, "cifar10", archive, tmp_path / "data")
    with pytest.raises(ValueError, match=r"needs more packages; pip install 'lpjax\[data\]'"):
        tfds_sets.cifar10.load(DataConfig(dir=str(tmp_path)))


def test_sets_that_are_not_there(cifar, tmp_path):
    for source in (tfds_sets.cifar100, tfds_sets.imagenet2012):
        name = source.name
        unset = f"dir is unset: .* python -m lpjax.data.prepare {name} --source=ARCHIVE"
        for call in (source.load, source.describe):
            with pytest.raises(ValueError, match=unset):
                call(DataConfig())
            with pytest.raises(FileNotFoundError, match=f"{tmp_path}/no: no such folder; prepare {name} with: python"):
                call(DataConfig(dir=f"{tmp_path}/no"))
            with pytest.raises(FileNotFoundError, match=rf"{name} is not prepared there .* --data_dir={tmp_path}"):
                call(DataConfig(dir=str(tmp_path)))
    assert not any(tmp_path.iterdir()), "looking leaves nothing behind"


@pytest.fixture
def copy(cifar, tmp_path):
    """A copy of the prepared CIFAR-10, to be damaged: its folder and the one of its version."""
    shutil.copytree(cifar["cifar10"][0], tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "cifar10" / "3.0.2"


def edit_info(folder, change):
    info = json.loads((folder / "dataset_info.json").read_text())
    change(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_prepared_as_tfrecord(copy, tmp_path, capsys):
    data_dir, folder = copy
    edit_info(folder, lambda info: info.update(fileFormat="tfrecord"))
    message = "prepared as tfrecord: expected array_record.* remove that folder or choose another data_dir"
    with pytest.raises(ValueError, match=message):
        tfds_sets.cifar10.load(DataConfig(dir=str(data_dir)))
    code, _, err = run(capsys, "cifar10", f"--source={tmp_path}", f"--data_dir={data_dir}")
    assert code == 2
    assert "prepared as tfrecord" in err


@pytest.mark.parametrize(
    "change", [lambda info: info["splits"].pop(1), lambda info: info["splits"][1].update(shardLengths=["0"])]
)
def test_a_split_that_is_missing_or_empty(change, copy):
    edit_info(copy[1], change)
    with pytest.raises(ValueError, match=r"split '(test|train)' is missing or empty; remove that folder"):
        tfds_sets.cifar10.describe(DataConfig(dir=str(copy[0])))


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


def test_an_imagenet_record_that_is_damaged(imagenet, tmp_path):
    shutil.copytree(imagenet[0], tmp_path / "data")
    (file,) = tmp_path.glob("data/*/*/imagenet2012-train.array_record*")
    os.truncate(file, file.stat().st_size // 2)
    train = tfds_sets.imagenet2012.load(DataConfig(dir=str(tmp_path / "data"))).train
    with pytest.raises(OSError, match=r"5\.1\.0, split 'train': example 3 cannot be read"):
        train[3]
    assert train.name(3).endswith("5.1.0, split 'train', example 3")


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
