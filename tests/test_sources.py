"""Sets in files: IDX, folders of images, and what becomes of an image file."""

import gzip
import io
import re

import numpy as np
import pytest
from data_makers import encoded, idx_bytes, make_folder, make_idx
from PIL import Image

from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES, images
from lpjax.data.source import Spec
from lpjax.data.subset import data_notes, reduced_spec


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


ROW = {"train": "train-{0}-idx{1}-ubyte", "test": "t10k-{0}-idx{1}-ubyte"}


@pytest.mark.parametrize(
    "names",
    [
        {split: f"emnist-letters-{name}.gz" for split, name in ROW.items()},
        {split: f"MNIST/raw/{name}" for split, name in ROW.items()},
        {split: f"{name}/{name}" for split, name in ROW.items()},
        {split: f"archive/{name}/{name}" for split, name in ROW.items()},
        {split: f"{split}/{name}" for split, name in ROW.items()},
        {"train": "train-{0}.idx{1}-ubyte", "test": "t10k_{0}_idx{1}_ubyte.gz"},
    ],
)
def test_idx_files_under_the_names_they_are_found_by(names, tmp_path):
    made = make_idx(tmp_path, names=names)
    _, data = read(at(tmp_path, "mnist"))
    np.testing.assert_array_equal(data.test_images[..., 0], made["test"][0])


def test_the_nearest_of_several_sets(tmp_path):
    """Zipped or not, whatever the name says; and two sets at one depth are refused by name."""
    make_idx(tmp_path, names={split: f"a/{name}" for split, name in ROW.items()}, classes=3)
    make_idx(tmp_path, names={split: f"b/raw/{name}" for split, name in ROW.items()}, classes=4)
    for path in [*tmp_path.rglob("*-ubyte")][::2]:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert SOURCES["idx"].describe(at(tmp_path, "idx")).classes == 3
    (tmp_path / "a").rename(tmp_path / "b" / "cooked")
    refused(at(tmp_path, "idx"), "several sets: .*b/cooked/train-images.*, .*b/raw/train-images.*: expected one; set")


def test_labels_from_one(tmp_path):
    made = make_idx(tmp_path, first=1, classes=3, names=PLAIN)
    spec, data = read(at(tmp_path, "idx"))
    assert (spec.classes, spec.class_names) == (3, ("1", "2", "3"))
    np.testing.assert_array_equal(data.train_labels, made["train"][1] - 1)
    np.testing.assert_array_equal(data.test_labels, made["test"][1] - 1)
    refused_labels = made["test"][1].copy()
    refused_labels[4] = 0
    (tmp_path / TEST_LABELS).write_bytes(idx_bytes(refused_labels))
    with pytest.raises(ValueError, match="label 0 of example 4: expected 1 to 3"):
        SOURCES["idx"].load(at(tmp_path, "idx"))


def test_classes_without_an_image_are_said(tmp_path):
    make_idx(tmp_path, classes=6, counts=(5, 4), names=PLAIN)
    spec, data = read(at(tmp_path, "fashion_mnist"))
    assert data_notes(data, spec) == (
        "no training images of Ankle boot, Bag, Sandal, .. (5)",
        "no test images of Ankle boot, Bag, Coat, .. (6)",
    )


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
        "parquet": None,
        "text": None,
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
    message = rf"{tmp_path}: no t10k-labels-idx1-ubyte\[.gz\]; put it there, or correct data.dir"
    refused(at(tmp_path, "mnist"), message, FileNotFoundError)


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


@pytest.mark.parametrize("test_name", ["test", "Validation"])
def test_a_folder_of_images(test_name, pictures, tmp_path):
    train, test = pictures
    make_folder(tmp_path, train, test, test_name)
    spec, data = read(at(tmp_path, "folder", **SMALL))
    assert spec == Spec((14, 14, 3), classes=3, num_train=9, num_test=2)
    assert spec.notes == ("no test images of ant (1)",)
    classes = ["ant", "cat", "dog"]
    for split, files, made in (("train", data.train, train), (test_name, data.test, test)):
        found = {files.name(i): files[i] for i in range(len(files))}
        expected = {str(tmp_path / split / name): (file, classes.index(name[:3])) for name, file in made.items()}
        assert found == expected
    crops = np.stack([crop(file) for file in train.values()]) / 255
    np.testing.assert_allclose(data.mean, crops.mean((0, 1, 2)))
    np.testing.assert_allclose(data.std, crops.std((0, 1, 2)))


PNG = encoded(np.zeros((4, 4, 3), np.uint8))


def make_tree(where, counts):
    """Images where/FOLDER/0.png .. for {FOLDER: how many}; {FILE: bytes} makes one file."""
    for name, content in counts.items():
        files = {name: content} if isinstance(content, bytes) else {f"{name}/{i}.png": PNG for i in range(content)}
        for path, data in files.items():
            (where / path).parent.mkdir(parents=True, exist_ok=True)
            (where / path).write_bytes(data)


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    """Content decides, at any depth; each file that is not used is named with the reason."""
    make_tree(tmp_path, {"train/cat": 2, "train/cat/black/wild": 1, "train/dog": 3, "test/cat": 1, "test/dog": 1})
    make_tree(tmp_path, {"train/dog/a": PNG, "train/dog/b.jfif": PNG, "train/dog/notes.txt": b"no", "train/x.png": PNG})
    make_tree(tmp_path, {"train/__MACOSX": 2, "train/cat/._0.png": b"", "test/@eaDir": 1, "more": 2, "read.me": b""})
    (tmp_path / "train/cat/gone.png").symlink_to("nowhere")
    (tmp_path / "train/cat/again").symlink_to("..")
    (tmp_path / "train/dog/album.jpg").mkdir()
    (tmp_path / "train/dog/circle").symlink_to("circle")
    make_tree(tmp_path, {"test/loose.png": PNG})
    spec = SOURCES["folder"].describe(at(tmp_path, "folder"))
    assert (spec.class_names, spec.num_train, spec.num_test) == (("cat", "dog"), 8, 2)
    assert sorted(spec.notes) == [
        "left out, hidden, or added by an archive or a disk: test/@eaDir, train/__MACOSX, train/cat/._0.png (3)",
        "left out, in no class folder: test/loose.png, train/x.png (2)",
        "left out, in no folder of a split: more, read.me (2)",
        "left out, links to a folder that they are in: train/cat/again (1)",
        "left out, links to what is not there: train/cat/gone.png, train/dog/circle (2)",
        "left out, no images in a format that is read: train/dog/notes.txt (1)",
    ]
    refused(
        at(tmp_path, "folder", max_corrupt=0), "2 files cannot be read: expected at most data.max_corrupt=0; .*gone"
    )


TRAIN = {"train/cat": 8, "train/dog": 8}


@pytest.mark.parametrize(
    "tree, fields, counts, note",
    [
        ({"valid/cat": 2, "valid/dog": 1}, {}, (16, 3), ""),
        (
            {"test/cat": 2, "val/dog": 1},
            {},
            (16, 2),
            "not tested on, val: 1 images in sub-folders dog .1.: data.test_sp",
        ),
        (
            {"test/cat": 2, "Val/dog": 1},
            {"test_split": "val"},
            (16, 1),
            "not tested on, test: 2 images in sub-folders cat",
        ),
        ({"test": 3, "val/cat": 2, "val/dog": 2}, {}, (16, 4), "not tested on, test: 3 images in no class folder"),
        ({"test/x": 3, "val/cat": 2, "val/dog": 2}, {}, (16, 4), "not tested on, test: 3 images in sub-folders x"),
        ({}, {"holdout": 0.25}, (12, 4), ""),
        ({"test/cat": 1}, {"holdout": 0.01}, (14, 2), "not tested on, test: 1 images in sub-folders cat"),
    ],
)
def test_splits_as_people_have_them(tree, fields, counts, note, tmp_path):
    make_tree(tmp_path, TRAIN | tree)
    spec = SOURCES["folder"].describe(at(tmp_path, "folder", **fields))
    assert (spec.num_train, spec.num_test) == counts
    assert re.search(note, " ".join(spec.notes))


@pytest.mark.parametrize(
    "tree, fields, error, message",
    [
        ({"cat": 4, "dog": 4}, {}, OSError, "no folder train: .*; if cat, dog .2. are the classes, data.holdout=0.1"),
        ({"set/train/cat": 4}, {}, OSError, "no folder train: .*: .*/set has one"),
        (TRAIN | {"test": 3}, {}, ValueError, "no images to test on .*test: 3 images in no class folder.*data.holdout"),
        (TRAIN | {"test/Cat": 3}, {}, ValueError, "test/Cat: no class of that name .*, is it cat?"),
        (TRAIN | {"val/cat": 1}, {"test_split": "dev"}, ValueError, "data.test_split=dev: expected .* train: val"),
        (
            TRAIN | {"train/ox/a": b"", "val/cat": 1},
            {},
            ValueError,
            "no image of ox .1.: .*; left out, no images.*ox/a",
        ),
        (TRAIN | {"train/\u00e9": 1, "train/e\u0301": 1}, {}, ValueError, "second class folder of this name"),
        (
            {"train/0.png": PNG, "test/cat": 1},
            {},
            ValueError,
            "train: 1 images in no class folder: expected train/CLASS",
        ),
        ({"cat/train/a": 1, "dog/train/a": 1}, {}, OSError, "the splits are inside of cat, dog .2."),
        ({"cat": 1, "test": 1}, {"holdout": 0.5}, OSError, "is test a class. it has the name of a split"),
        (TRAIN | {"val/ILSVRC2012_val_00000003.JPEG": PNG}, {}, ValueError, "none is of a class of train"),
    ],
)
def test_folders_without_usable_splits(tree, fields, error, message, tmp_path):
    make_tree(tmp_path, tree)
    refused(at(tmp_path, "folder", **fields), message, error)


def test_links_of_a_folder(tmp_path):
    """A class that is one is read; one that leads nowhere is no small loss, and train itself is no test."""
    make_tree(tmp_path, {"train/train/cat": 1, "elsewhere": 2, "test/cat": 1})
    (tmp_path / "train/train/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "val").symlink_to("train/train")
    spec = SOURCES["folder"].describe(at(tmp_path, "folder"))
    assert (spec.class_names, spec.num_train, spec.num_test) == (("cat", "dog"), 3, 1)
    assert spec.notes == ("no test images of dog (1)", "left out, in no folder of a split: elsewhere (1)")
    refused(at(tmp_path, "folder", test_split="val"), "expected a folder beside train: elsewhere, test")
    (tmp_path / "train/train/owl").symlink_to("/gone")
    refused(at(tmp_path, "folder"), "train/owl: links to what is not there: expected a class folder")


def test_imagenets_validation_images_in_one_folder(tmp_path):
    """By the list that comes with the set: images 1 to 4 are of n01751748, n09193705, n02105855, n04263257."""
    names = [f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in (4, 2, 1)]
    make_tree(tmp_path, {"train/n09193705": 1, "train/n04263257": 1} | dict.fromkeys(names, PNG))
    _, data = read(at(tmp_path, "folder"))
    assert {data.test.name(i)[-6:-5]: data.test[i][1] for i in range(len(data.test))} == {"2": 1, "4": 0}
    spec = SOURCES["folder"].describe(at(tmp_path, "folder"))
    assert "left out, of no class of train: 1 images of val" in spec.notes


def test_what_is_held_out(tmp_path):
    """A share of each class, the same at each start, hardly another after an addition, another by another seed."""

    def held(**fields):
        _, data = read(at(tmp_path, "folder", holdout=0.2, **fields))
        train, test = (
            [files.name(i)[len(str(tmp_path)) :] for i in range(len(files))] for files in (data.train, data.test)
        )
        assert not set(train) & set(test)
        return train, test

    make_tree(tmp_path, {"cat": 20, "dog": 10})
    train, test = held()
    assert [sum(name.startswith(f"/{label}/") for name in test) for label in ("cat", "dog")] == [4, 2]
    assert len(train) == 24
    assert held() == (train, test)
    assert held(holdout_seed=1)[1] != test
    make_tree(tmp_path, {"cat/more.png": PNG})
    assert len(set(held()[1]) & set(test)) >= 5


def test_a_class_of_one_name_in_two_unicode_forms(tmp_path):
    make_tree(tmp_path, {"train/caf\u00e9": 1, "train/dog": 1, "train/Dog": 1, "test/cafe\u0301": 1})
    spec = SOURCES["folder"].describe(at(tmp_path, "folder"))
    assert spec.class_names == ("Dog", "caf\u00e9", "dog")
    assert spec.num_test == 1
    assert "classes of one name but for the case of letters: Dog, dog (2)" in spec.notes


@pytest.mark.parametrize(
    "num_test, fields, message",
    [(0, {"holdout": 0.5}, "no images to test on: .*; data.holdout=0.5 leaves"), (9, {"cutout": 9}, "most a side's 8")],
)
def test_sets_without_tests_and_images_without_pixels(num_test, fields, message):
    with pytest.raises(ValueError, match=message):
        reduced_spec(Spec((8, 8, 1), 2, 10, num_test), DataConfig(**fields))


@pytest.mark.parametrize(
    "names, message",
    [
        (("cat",), "all examples are of one class, cat: expected two"),
        (("a\x1b", "b"), "characters that can be shown; rename"),
    ],
)
def test_classes_that_cannot_be_trained_or_exported(names, message):
    with pytest.raises(ValueError, match=message):
        reduced_spec(Spec((8, 8, 1), len(names), 10, 10, names), DataConfig())


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


def on_white(picture, transparency=None):
    """A picture with transparent parts as a page shows it."""
    if transparency is not None:
        picture = picture.copy()
        picture.info["transparency"] = transparency
    red, green, blue, alpha = np.moveaxis(np.asarray(picture.convert("RGBA"), float), -1, 0)
    mixed = [(alpha * colour + (255 - alpha) * 255) / 255 for colour in (red, green, blue)]
    return Image.fromarray(np.stack(mixed, -1).round().astype(np.uint8))


def turned(number, kind):
    """PICTURE stored otherwise, with the EXIF orientation that shows it upright."""
    rows = np.asarray(PICTURE)
    rows = {2: rows[:, ::-1], 3: rows[::-1, ::-1], 4: rows[::-1], 5: rows.swapaxes(0, 1), 6: np.rot90(rows),
            7: rows[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(rows, -1)}.get(number, rows)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(np.ascontiguousarray(rows), kind, exif=exif)


@pytest.mark.parametrize(
    "file, reference, channels",
    [
        (encoded(PICTURE, "JPEG", quality=95), PICTURE, 3),
        (encoded(PICTURE.convert("L"), "JPEG", quality=95), PICTURE.convert("L"), 3),
        (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), PICTURE, 1),
        (encoded(smooth(80, 100, "RGBA")), on_white(smooth(80, 100, "RGBA")), 3),
        (encoded(PALETTE, transparency=bytes([0, 128] * 128)), on_white(PALETTE, bytes([0, 128] * 128)), 3),
        (encoded(smooth(80, 100, "LA")), on_white(smooth(80, 100, "LA")), 1),
        (encoded(PICTURE, transparency=PICTURE.getpixel((50, 40))), on_white(PICTURE, PICTURE.getpixel((50, 40))), 3),
        (encoded(PICTURE.convert("1")), PICTURE.convert("1"), 1),
        (encoded(PICTURE, "GIF", save_all=True, append_images=[smooth(80, 100, "L")]), PALETTE, 3),
        (encoded(PICTURE, "AVIF", quality=100), PICTURE, 3),
        *((turned(number, kind), PICTURE, 3) for number in range(1, 9) for kind in ("PNG", "TIFF")),
    ],
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
