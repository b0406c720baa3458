"""Sets in files: IDX, folders of images, and what becomes of an image file."""

import gzip
import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from data_makers import IDX_NAMES, encoded, idx_bytes, make_folder, make_idx
from PIL import Image

from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES, images
from lpjax.data.source import Spec

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Debian's package dataset-fashion-mnist."""


def at(where, name, **fields):
    return DataConfig(name=name, dir=str(where), **fields)


def read(config):
    source = SOURCES[config.name]
    return source.describe(config), source.load(config)


def refused(config, message, error=ValueError):
    """describe and load raise the same."""
    source = SOURCES[config.name]
    for call in (source.describe, source.load):
        with pytest.raises(error, match=message):
            call(config)


# ---------------------------------------------------------------------------------------------------------------- IDX


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "idx"])
@pytest.mark.parametrize(
    "train_name, test_name, shape",
    [
        ("train-{}-idx{}-ubyte.gz", "t10k-{}-idx{}-ubyte.gz", (28, 28)),
        ("train-{}-idx{}-ubyte", "t10k-{}-idx{}-ubyte", (28, 28)),
        ("train-{}.idx{}-ubyte", "test-{}.idx{}-ubyte.gz", (28, 28, 1)),
    ],
)
def test_idx_files_image_by_image(name, train_name, test_name, shape, tmp_path):
    made = make_idx(tmp_path, shape, names={"train": train_name, "test": test_name})
    spec, data = read(at(tmp_path, name))
    assert spec == Spec((28, 28, 1), classes=10, num_train=30, num_test=20)
    for split, pixels, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        assert (pixels.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(pixels, made[split][0].reshape(-1, 28, 28, 1))
        np.testing.assert_array_equal(labels, made[split][1])
    np.testing.assert_allclose(data.mean, made["train"][0].mean() / 255)
    np.testing.assert_allclose(data.std, made["train"][0].std() / 255)


@pytest.mark.parametrize("shape, image_shape", [((12, 9), (12, 9, 1)), ((12, 9, 3), (12, 9, 3))])
def test_another_set_of_idx_files_by_configuration_alone(shape, image_shape, tmp_path):
    made = make_idx(tmp_path, shape, classes=7, counts=(40, 10))
    spec, data = read(at(tmp_path, "idx"))
    assert spec == Spec(image_shape, classes=7, num_train=40, num_test=10)
    np.testing.assert_array_equal(data.test_images, made["test"][0].reshape(-1, *image_shape))
    np.testing.assert_allclose(data.mean, made["train"][0].reshape(-1, image_shape[2]).mean(0) / 255)


def test_published_idx_sets():
    nowhere = DataConfig(dir="no/such/folder")
    assert SOURCES["mnist"].published(nowhere) == Spec((28, 28, 1), 10, 60_000, 10_000)
    assert SOURCES["fashion_mnist"].published(nowhere) == Spec((28, 28, 1), 10, 60_000, 10_000)
    assert SOURCES["idx"].published is SOURCES["folder"].published is None


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="apt install dataset-fashion-mnist")
def test_fashion_mnist_as_debian_packs_it():
    spec, data = read(at(FASHION_MNIST, "fashion_mnist"))
    assert spec == SOURCES["fashion_mnist"].published(DataConfig())
    assert (len(data.train_images), len(data.test_images)) == (60_000, 10_000)
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    np.testing.assert_allclose([data.mean[0], data.std[0]], [0.2860, 0.3530], atol=5e-5)  # as commonly quoted


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_idx(tmp_path)
    assert SOURCES["mnist"].describe(at("~", "mnist")).num_train == 30


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "idx", "folder"])
def test_no_folder(name, tmp_path):
    refused(DataConfig(name=name), "data.dir is unset: expected a folder; set data.dir to the folder with train")
    missing = tmp_path / "no"
    refused(
        at(missing, name),
        f"data.dir={missing}: no such folder; set data.dir to the folder with train",
        error=FileNotFoundError,
    )


@pytest.mark.parametrize("split, name", IDX_NAMES.items())
@pytest.mark.parametrize("kind, axes", [("images", 3), ("labels", 1)])
def test_one_idx_file_is_missing(split, name, kind, axes, tmp_path):
    make_idx(tmp_path)
    file = name.format(kind, axes)
    (tmp_path / file).unlink()
    refused(at(tmp_path, "mnist"), rf"{tmp_path}: no {file[:-3]}\[.gz\]; put it there, or correct data.dir")


PLAIN = {"train": "train-{}-idx{}-ubyte", "test": "t10k-{}-idx{}-ubyte"}
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "file, damage, message",
    [
        (TRAIN_IMAGES, lambda data: data[:-1], "23519 values: expected 23520 for axes .30, 28, 28.; copy or download"),
        (TRAIN_IMAGES, lambda data: data + b"x", "23521 values: expected 23520 for axes"),
        (TRAIN_IMAGES, lambda data: data[:10], "damaged or truncated .*; copy or download train-images-idx3"),
        (TRAIN_IMAGES, lambda data: b"", "damaged or truncated"),
        (TEST_LABELS, lambda data: b"\x89PNG" + data[4:], "expected the header of an IDX file of unsigned bytes; copy"),
        (TEST_LABELS, lambda data: b"\0\0\x0d" + data[3:], "expected the header of an IDX file of unsigned bytes"),
        (TEST_LABELS, lambda data: b"\0\0\x08\0", "expected the header of an IDX file of unsigned bytes"),
        (TRAIN_LABELS, lambda data: data[:8] + b"\x0a" + data[9:], "label 10 of example 0: expected 0 to 9 .10 classe"),
        (TEST_LABELS, lambda data: data[:-1] + b"\xff", "label 255 of example 19: expected 0 to 9"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files(file, damage, message, suffix, tmp_path):
    make_idx(tmp_path, names={split: name + suffix for split, name in PLAIN.items()})
    path = tmp_path / f"{file}{suffix}"
    pack, unpack = (gzip.compress, gzip.decompress) if suffix else (bytes, bytes)
    path.write_bytes(pack(damage(unpack(path.read_bytes()))))
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        SOURCES["mnist"].load(at(tmp_path, "mnist"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: data[:15],
        lambda data: data[:200] + bytes(100) + data[300:],
        lambda data: b"no gzip",
        lambda data: b"",
    ],
)
def test_damaged_gzip_files(damage, tmp_path):
    make_idx(tmp_path)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}: damaged or truncated .*; copy or download {path.name} again"):
        SOURCES["mnist"].load(at(tmp_path, "mnist"))


def replaced(name, values):
    return lambda where: (where / name).write_bytes(idx_bytes(values))


def copied(source, target):
    return lambda where: (where / target).write_bytes((where / source).read_bytes())


def emptied(where):
    replaced(TEST_IMAGES, np.zeros((0, 28, 28), np.uint8))(where)
    replaced(TEST_LABELS, np.zeros(0, np.uint8))(where)


@pytest.mark.parametrize(
    "damage, message",
    [
        (copied(TRAIN_LABELS, TRAIN_IMAGES), f"{TRAIN_IMAGES}: axes .30,.: expected .N, H, W. or .* of labels.$"),
        (copied(TRAIN_IMAGES, TRAIN_LABELS), f"{TRAIN_LABELS}: axes .30, 28, 28.: expected one label for each"),
        (copied(TEST_LABELS, TRAIN_LABELS), f"{TRAIN_LABELS}: axes .20,.: expected one label for each of the 30"),
        (replaced(TEST_IMAGES, np.zeros((20, 28, 27), np.uint8)), f"{TEST_IMAGES}: images of .28, 27, 1.: expected"),
        (emptied, f"{TEST_IMAGES}: the test split is empty: expected at least one image"),
    ],
)
@pytest.mark.parametrize("name", ["mnist", "idx"])
def test_idx_files_that_do_not_belong_together(damage, message, name, tmp_path):
    make_idx(tmp_path, names=PLAIN)
    damage(tmp_path)
    refused(at(tmp_path, name), f"{tmp_path}/{message}")


def test_another_set_under_mnists_name(tmp_path):
    make_idx(tmp_path, (32, 32), names=PLAIN)
    refused(at(tmp_path, "mnist"), f"{TRAIN_IMAGES}: images of .32, 32, 1.: expected .28, 28, 1.; choose data.name=idx")


def test_a_test_label_the_training_set_does_not_have(tmp_path):
    make_idx(tmp_path, classes=4, names=PLAIN)
    replaced(TEST_LABELS, np.full(20, 4, np.uint8))(tmp_path)
    with pytest.raises(ValueError, match=f"{TEST_LABELS}: label 4 of example 0: expected 0 to 3"):
        SOURCES["idx"].load(at(tmp_path, "idx"))


# ------------------------------------------------------------------------------------------------------------- folders


def pixels(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def pictures():
    """Colour PNGs of 16x16 of three classes, in no order; of the training and of the test split."""
    rng = np.random.default_rng(0)
    train = {f"{name}/{i}.png": encoded(pixels(rng, 16, 16, 3)) for i in range(3) for name in ("dog", "cat", "ant")}
    return train, {"cat/1.PNG": encoded(pixels(rng, 16, 16, 3)), "dog/2.jpg": encoded(pixels(rng, 16, 16, 3), "JPEG")}


SMALL = {"image_size": 14}
"""224/256 of the pictures: the centre crop is not scaled."""


def crop(file):
    return np.asarray(Image.open(io.BytesIO(file)))[1:15, 1:15]


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_a_folder_of_images(test_name, pictures, tmp_path):
    train, test = pictures
    make_folder(tmp_path, train, test, test_name)
    for name in ("notes.txt", ".hidden.png", ".hidden/a.png"):
        (tmp_path / "train" / "cat" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / "cat" / name).write_bytes(b"no image")
    (tmp_path / "train" / ".cache").mkdir()
    spec, data = read(at(tmp_path, "folder", **SMALL))
    assert spec == Spec((14, 14, 3), classes=3, num_train=9, num_test=2)
    classes = ["ant", "cat", "dog"]
    for split, files, made in (("train", data.train, train), (test_name, data.test, test)):
        found = {files.name(i): files[i] for i in range(len(files))}
        expected = {str(tmp_path / split / name): (file, classes.index(name[:3])) for name, file in made.items()}
        assert found == expected
    crops = np.stack([crop(file) for file in train.values()]) / 255
    np.testing.assert_allclose(data.mean, crops.mean((0, 1, 2)))
    np.testing.assert_allclose(data.std, crops.std((0, 1, 2)))


def test_few_of_many_files_are_looked_at(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("lpjax.data.images"), "SAMPLED_FILES", 3)
    make_folder(tmp_path, *pictures)
    data = SOURCES["folder"].load(at(tmp_path, "folder", **SMALL))
    crops = np.stack([crop(data.train[i][0]) for i in (0, 4, 8)]) / 255
    np.testing.assert_allclose(data.mean, crops.mean((0, 1, 2)))


def test_a_class_that_is_not_in_train(pictures, tmp_path):
    make_folder(tmp_path, pictures[0], {"cow/1.png": b""})
    refused(at(tmp_path, "folder"), f"{tmp_path}/test/cow: no class of that name in train: expected one of its 3 sub-")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_a_folder_that_is_empty_or_missing(split, pictures, tmp_path):
    make_folder(tmp_path, *pictures)
    for file in (tmp_path / split).glob("*/*"):
        file.unlink()
    refused(at(tmp_path, "folder"), f"{tmp_path}/{split}: the split is empty: expected CLASS/.*; add images")
    for path in sorted((tmp_path / split).glob("**"), reverse=True):
        path.rmdir()
    refused(at(tmp_path, "folder"), f"{tmp_path}: no folder {split}.*; make it, or correct", error=FileNotFoundError)


def test_grey_images(pictures, tmp_path):
    train, test = pictures
    rng = np.random.default_rng(1)
    grey = {f"cat/{i}.png": encoded(pixels(rng, 16, 16)) for i in range(4)}
    make_folder(tmp_path / "all", grey, {"cat/1.png": test["cat/1.PNG"]})
    colour, one = (at(tmp_path / "all", "folder", channels=c, **SMALL) for c in (3, 1))
    with pytest.raises(ValueError, match=r"train/cat/0\.png: grey, as all files .* data\.channels=3; set data\.channe"):
        SOURCES["folder"].load(colour)
    spec, data = read(one)
    assert spec.image_shape == (14, 14, 1)
    np.testing.assert_allclose(data.mean, [np.mean([crop(file) for file in grey.values()]) / 255])
    make_folder(tmp_path / "some", train | grey, test)
    data = SOURCES["folder"].load(at(tmp_path / "some", "folder", **SMALL))
    shown = images.decode(grey["cat/3.png"], size=14, channels=3, rng=None)
    np.testing.assert_array_equal(shown, np.repeat(crop(grey["cat/3.png"])[..., None], 3, -1))


def test_damaged_files_among_those_looked_at(pictures, tmp_path):
    train, test = pictures
    make_folder(tmp_path / "one", train | {"ant/0.png": b"no image"}, test)
    crops = np.stack([crop(file) for name, file in train.items() if name != "ant/0.png"]) / 255
    np.testing.assert_allclose(
        SOURCES["folder"].load(at(tmp_path / "one", "folder", **SMALL)).mean, crops.mean((0, 1, 2))
    )
    make_folder(tmp_path / "all", dict.fromkeys(train, b"no image"), test)
    with pytest.raises(ValueError, match=r"train/dog/2\.png: not an image file; nor can any other of the files"):
        SOURCES["folder"].load(at(tmp_path / "all", "folder"))


# -------------------------------------------------------------------------------------------------------------- images


def smooth(height, width, mode="RGB"):
    """A picture that scaling hardly changes."""
    rng = np.random.default_rng(0)
    coarse = Image.frombytes(mode, (5, 4), pixels(rng, 20 * len(Image.new(mode, (1, 1)).getbands())).tobytes())
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def decode(file, size=224, channels=3, rng=None):
    out = images.decode(file, size=size, channels=channels, rng=rng)
    assert (out.shape, out.dtype) == ((size, size, channels), np.uint8)
    return out


def test_the_centre_crop_without_scaling_is_a_slice():
    picture = pixels(np.random.default_rng(0), 256, 300, 3)
    np.testing.assert_array_equal(decode(encoded(picture)), picture[16:240, 38:262])
    np.testing.assert_array_equal(decode(encoded(picture.swapaxes(0, 1))), picture.swapaxes(0, 1)[38:262, 16:240])
    grey = picture[..., 0]
    np.testing.assert_array_equal(decode(encoded(grey), channels=1)[..., 0], grey[16:240, 38:262])


PICTURE = smooth(80, 100)
PALETTE = PICTURE.quantize(256)


@pytest.mark.parametrize(
    "file, reference",
    [
        (encoded(PICTURE), PICTURE),
        (encoded(PICTURE, "JPEG", quality=95), PICTURE),
        (encoded(PICTURE.convert("L"), "JPEG", quality=95), PICTURE.convert("L")),
        (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), PICTURE),
        (encoded(PICTURE.convert("LA")), PICTURE.convert("L")),
        (encoded(smooth(80, 100, "RGBA")), smooth(80, 100, "RGBA").convert("RGB")),
        (encoded(PALETTE), PALETTE),
        (encoded(PALETTE, transparency=bytes([0, 128] * 128)), PALETTE),
        (encoded(PALETTE, "GIF"), PALETTE),
        (encoded(PICTURE.convert("1")), PICTURE.convert("1")),
    ],
    ids=["RGB", "JPEG", "grey JPEG", "CMYK", "LA", "RGBA", "palette", "transparent palette", "GIF", "1"],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_every_kind_of_image_file(file, reference, channels):
    mode = "RGB" if channels == 3 else "L"
    box = images.centre_box(100, 80)
    expected = np.asarray(reference.convert("RGB").convert(mode).resize((70, 70), Image.Resampling.BILINEAR, box=box))
    out = decode(file, 70, channels).reshape(expected.shape)
    assert np.abs(out.astype(int) - expected).mean() < 3, "JPEG loses a little"
    assert expected.std() > 20, "otherwise this tests nothing"


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (7, 5), (40, 40), (224, 224), (501, 333)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_of_all_sizes(height, width, kind):
    file = encoded(Image.new("RGB", (width, height), (10, 100, 200)), kind)
    for rng in (None, *map(np.random.default_rng, range(10))):
        out = decode(file, 32, rng=rng)
        assert np.abs(out.astype(int) - [10, 100, 200]).max() <= 2


def test_a_jpeg_decoded_at_part_of_its_size_looks_the_same():
    for height, width in ((801, 1203), (1201, 1603)):
        picture = smooth(height, width)
        jpeg, png = encoded(picture, "JPEG", quality=95), encoded(picture)
        for seed in (None, *range(8)):
            rngs = [None if seed is None else np.random.default_rng(seed) for _ in range(2)]
            difference = decode(jpeg, 48, rng=rngs[0]).astype(int) - decode(png, 48, rng=rngs[1])
            assert np.abs(difference).mean() < 2.5


def test_a_jpeg_is_decoded_at_part_of_its_size(monkeypatch):
    asked = []

    def convert(image, mode):
        asked.append(image.size)
        return Image.new(mode, image.size)

    monkeypatch.setattr(Image.Image, "convert", convert)
    decode(encoded(smooth(1201, 1603), "JPEG"), 48)
    decode(encoded(smooth(1201, 1603)), 48)
    assert asked == [(201, 151), (1603, 1201)]


def test_random_boxes():
    rng = np.random.default_rng(0)
    boxes = np.array([images.random_box(400, 400, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert (right.max(), bottom.max()) == (400, 400), "to the edge, not beyond"
    w, h = right - left, bottom - top
    share, aspect = w * h / 400**2, w / h
    assert 0.075 < share.min() < 0.1
    assert 0.9 < share.max() < 1.005
    assert 0.73 < aspect.min() < 0.78
    assert 1.29 < aspect.max() < 1.37
    assert abs(np.log(aspect).mean()) < 0.02, "upright as often as lying: the standard error is 0.004"
    np.testing.assert_array_equal(images.random_box(400, 400, np.random.default_rng(0)), boxes[0])


def test_a_strip_no_random_box_fits_in():
    rng = np.random.default_rng(0)
    assert {images.random_box(1000, 3, rng) for _ in range(20)} == {(498.5, 0.0, 501.5, 3.0)}


def test_the_random_crop_is_of_the_box():
    picture = smooth(90, 120)
    for seed in range(5):
        box = images.random_box(120, 90, np.random.default_rng(seed))
        expected = picture.resize((40, 40), Image.Resampling.BILINEAR, box=box)
        np.testing.assert_array_equal(decode(encoded(picture), 40, rng=np.random.default_rng(seed)), expected)


@pytest.mark.parametrize(
    "image, grey",
    [
        (Image.new("L", (4, 4)), True),
        (Image.new("1", (4, 4)), True),
        (Image.new("LA", (4, 4)), True),
        (Image.new("RGB", (4, 4)), False),
        (Image.new("RGBA", (4, 4)), False),
        (PICTURE.quantize(256), False),
    ],
)
def test_grey_by_the_files_mode(image, grey):
    assert images.is_grey(encoded(image)) == grey


@pytest.mark.parametrize(
    "file, message",
    [
        (b"", "^not an image file$"),
        (b"no image", "^not an image file$"),
        (encoded(PICTURE, "JPEG")[:-300], "truncated"),
        (encoded(PICTURE)[:400], "truncated|broken"),
        (encoded(np.full((8, 8), 1000, np.uint16)), "more than 8 bits .*I;16.*: expected 8; convert"),
    ],
)
def test_files_that_cannot_be_decoded(file, message):
    with pytest.raises(images.DECODING_ERRORS, match=message):
        decode(file)


def test_an_absurdly_large_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(images.DECODING_ERRORS, match="decompression bomb"):
        decode(encoded(PICTURE))
