"""Sets in files: IDX, folders of images, and what becomes of an image file."""

import io

import numpy as np
import pytest
from data_makers import encoded, idx_bytes, make_folder, make_idx
from PIL import Image

from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES, images
from lpjax.data.source import Spec


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


@pytest.mark.parametrize(
    "name, train_name, test_name, shape",
    [
        ("mnist", "train-{}-idx{}-ubyte.gz", "t10k-{}-idx{}-ubyte.gz", (28, 28)),
        ("fashion_mnist", "train-{}-idx{}-ubyte", "t10k-{}-idx{}-ubyte", (28, 28)),
        ("idx", "train-{}.idx{}-ubyte", "test-{}.idx{}-ubyte.gz", (28, 28, 1)),
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


def test_published_sets_are_known_without_looking():
    nowhere = DataConfig(dir="no/such/folder", image_size=160)
    found = {name: source.published and source.published(nowhere) for name, source in SOURCES.items()}
    assert found.pop("digits") == SOURCES["digits"].describe(DataConfig())
    assert found == {
        "mnist": Spec((28, 28, 1), 10, 60_000, 10_000),
        "fashion_mnist": Spec((28, 28, 1), 10, 60_000, 10_000),
        "cifar10": Spec((32, 32, 3), 10, 50_000, 10_000),
        "cifar100": Spec((32, 32, 3), 100, 50_000, 10_000),
        "imagenet2012": Spec((160, 160, 3), 1000, 1_281_167, 50_000),
        "idx": None,
        "folder": None,
    }
    assert SOURCES["imagenet2012"].published(DataConfig()).image_shape == (224, 224, 3)


def test_names_of_classes(tmp_path):
    def names(data_set):
        return SOURCES[data_set].describe(DataConfig(name=data_set, dir=str(tmp_path))).class_names

    make_idx(tmp_path, (28, 28))
    make_folder(tmp_path, {f"{name}/1.png": b"" for name in ("dog", "cat")}, {"dog/1.png": b""})
    assert names("digits") == names("mnist") == tuple("0123456789")
    assert names("fashion_mnist")[::9] == ("T-shirt/top", "Ankle boot")
    assert names("folder") == ("cat", "dog")
    assert names("idx") is None


@pytest.mark.parametrize("name", ["mnist", "folder"])
def test_no_folder(name, tmp_path):
    refused(DataConfig(name=name), "data.dir is unset: expected a folder; set data.dir to the folder with train")
    missing = tmp_path / "no"
    refused(at(missing, name), f"data.dir={missing}: no such folder; set data.dir to the folder", FileNotFoundError)


def test_another_set_under_mnists_name(tmp_path):
    make_idx(tmp_path, (32, 32), names=PLAIN)
    refused(at(tmp_path, "mnist"), f"{TRAIN_IMAGES}: images of .32, 32, 1.: expected .28, 28, 1.; choose data.name=idx")


def test_one_idx_file_is_missing(tmp_path):
    make_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    refused(at(tmp_path, "mnist"), rf"{tmp_path}: no t10k-labels-idx1-ubyte\[.gz\]; put it there, or correct data.dir")


PLAIN = {"train": "train-{}-idx{}-ubyte", "test": "t10k-{}-idx{}-ubyte"}
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "file, damage, message",
    [
        (TRAIN_IMAGES, lambda data: data[:-1], "23519 values: expected 23520 for axes .30, 28, 28.; copy or download"),
        (TRAIN_IMAGES, lambda data: data[:10], "damaged or truncated .*; copy or download train-images-idx3"),
        (TEST_LABELS, lambda data: b"\0\0\x0d" + data[3:], "expected the header of an IDX file of unsigned bytes"),
        (TRAIN_LABELS, lambda data: data[:8] + b"\x0a" + data[9:], "label 10 of example 0: expected 0 to 9 .10 classe"),
        (TEST_LABELS, lambda data: data[:-1] + b"\xff", "label 255 of example 19: expected 0 to 9"),
    ],
)
def test_damaged_idx_files(file, damage, message, tmp_path):
    make_idx(tmp_path, names=PLAIN)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=f"{tmp_path / file}: {message}"):
        SOURCES["mnist"].load(at(tmp_path, "mnist"))


@pytest.mark.parametrize(
    "file, values, message",
    [
        (TRAIN_IMAGES, np.zeros(30), "axes .30,.: expected .N, H, W. or .* of labels.$"),
        (TRAIN_LABELS, np.zeros((30, 28, 28)), "axes .30, 28, 28.: expected one label for each"),
        (TEST_IMAGES, np.zeros((20, 28, 27)), "images of .28, 27, 1.: expected"),
    ],
)
def test_idx_files_that_do_not_belong_together(file, values, message, tmp_path):
    make_idx(tmp_path, names=PLAIN)
    (tmp_path / file).write_bytes(idx_bytes(values.astype(np.uint8)))
    refused(at(tmp_path, "mnist"), f"{tmp_path}/{file}: {message}")


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


@pytest.mark.parametrize("test_name", ["test", "validation"])
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
    "file, reference, channels",
    [
        (encoded(PICTURE, "JPEG", quality=95), PICTURE, 3),
        (encoded(PICTURE.convert("L"), "JPEG", quality=95), PICTURE.convert("L"), 3),
        (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), PICTURE, 1),
        (encoded(smooth(80, 100, "RGBA")), smooth(80, 100, "RGBA").convert("RGB"), 3),
        (encoded(PALETTE, transparency=bytes([0, 128] * 128)), PALETTE, 3),
        (encoded(PICTURE.convert("1")), PICTURE.convert("1"), 1),
    ],
    ids=["JPEG", "grey JPEG", "CMYK", "RGBA", "transparent palette", "1"],
)
def test_every_kind_of_image_file(file, reference, channels):
    mode = "RGB" if channels == 3 else "L"
    box = images.centre_box(100, 80)
    expected = np.asarray(reference.convert("RGB").convert(mode).resize((70, 70), Image.Resampling.BILINEAR, box=box))
    out = decode(file, 70, channels).reshape(expected.shape)
    assert np.abs(out.astype(int) - expected).mean() < 3, "JPEG loses a little"
    assert expected.std() > 20, "otherwise this tests nothing"


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
    assert {images.random_box(1000, 3, rng) for _ in range(20)} == {(498.5, 0.0, 501.5, 3.0)}, "none fits in a strip"


def test_the_random_crop_is_of_the_box():
    picture = smooth(90, 120)
    for seed in range(5):
        box = images.random_box(120, 90, np.random.default_rng(seed))
        expected = picture.resize((40, 40), Image.Resampling.BILINEAR, box=box)
        np.testing.assert_array_equal(decode(encoded(picture), 40, rng=np.random.default_rng(seed)), expected)


@pytest.mark.parametrize(
    "file, message",
    [
        (b"no image", "^not an image file$"),
        (encoded(PICTURE, "JPEG")[:-300], "truncated"),
        (encoded(np.full((8, 8), 1000, np.uint16)), "more than 8 bits .*I;16.*: expected 8; convert"),
    ],
)
def test_files_that_cannot_be_decoded(file, message):
    with pytest.raises(images.DECODING_ERRORS, match=message):
        decode(file)
