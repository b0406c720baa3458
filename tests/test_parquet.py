"""Parquet files of images: splits, columns, labels, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_makers import encoded

from lpjax.config.schema import DataConfig
from lpjax.data import SOURCES
from lpjax.data.source import Spec

FILES = [encoded(np.full((8, 8, 3), 8 * i, np.uint8)) for i in range(30)]
CAT = ["cat", "dog"]


def write(path, labels, *, first=0, column="label", image="image", names=None, **more):
    """A table of image files first, first + 1, .. with these labels, as the hub writes it; names: of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [{"bytes": FILES[first + i], "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({image: files, column: labels} | more)
    if names:
        features = {column: {"names": names, "_type": "ClassLabel"}, image: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)


def config(where, **fields):
    return DataConfig(name="parquet", dir=str(where), image_size=7, **fields)


def read(where, **fields):
    """The spec, and {position in FILES: label} of each split."""
    source, fields = SOURCES["parquet"], config(where, **fields)
    spec, data = source.describe(fields), source.load(fields)
    assert (spec.num_train, spec.num_test) == (len(data.train), len(data.test))
    splits = [[files[i] for i in range(len(files))] for files in (data.train, data.test)]
    return spec, *({FILES.index(file): label for file, label in split} for split in splits)


def refused(where, message, error=ValueError, **fields):
    for call in (SOURCES["parquet"].describe, SOURCES["parquet"].load):
        with pytest.raises(error, match=message):
            call(config(where, **fields))


def test_splits_as_the_hub_has_them(tmp_path):
    write(tmp_path / "data/train-00000-of-00002.parquet", [0, 1, 1], names=CAT)
    write(tmp_path / "data/train-00001-of-00002.parquet", [1, 0, 0, 1], first=3, names=CAT)
    write(tmp_path / "data/test-00000-of-00001.parquet", [-1, -1], first=7, names=CAT)
    write(tmp_path / "data/validation-00000-of-00001.parquet", [1, None, 0], first=9, names=CAT)
    spec, train, test = read(tmp_path)
    assert (spec, spec.class_names) == (Spec((7, 7, 3), 2, 7, 2), ("cat", "dog"))
    assert train == {0: 0, 1: 1, 2: 1, 3: 1, 4: 0, 5: 0, 6: 1}
    assert test == {9: 1, 11: 0}
    assert spec.notes == (
        "not tested on, split test, which has no labels",
        "left out, rows of split validation without a label: 1",
    )


@pytest.mark.parametrize(
    "labels, fields, classes, expected",
    [
        (["dog", "cat", "dog", "cat"], {}, ("cat", "dog"), [1, 0, 1, 0]),
        ([1, 2, 3, 1], {}, ("1", "2", "3"), [0, 1, 2, 0]),
        ([0, 2, 1, 1], {"column": "fine_label", "coarse_label": [0, 0, 1, 1]}, None, [0, 2, 1, 1]),
        ([0, 1, 1, 0], {"column": "kind", "image": "img"}, None, [0, 1, 1, 0]),
    ],
)
def test_labels_and_columns(labels, fields, classes, expected, tmp_path):
    write(tmp_path / "train/0000.parquet", labels, **fields)
    write(tmp_path / "test/0000.parquet", labels[::-1], first=4, **fields)
    spec, train, test = read(tmp_path)
    assert spec.class_names == classes
    assert list(train.values()) == expected
    assert list(test.values()) == expected[::-1]


def test_one_file_of_which_a_share_is_held_out(tmp_path):
    write(tmp_path / "pictures.parquet", [0] * 10 + [1] * 20)
    _, train, test = read(tmp_path, holdout=0.2)
    assert (list(test.values()).count(0), list(test.values()).count(1)) == (2, 4)
    assert train | test == dict(enumerate([0] * 10 + [1] * 20))
    assert read(tmp_path, holdout=0.2)[1:] == (train, test)
    refused(tmp_path, "no split test with labels: there are train; .*data.holdout=0.1")


@pytest.mark.parametrize(
    "make, fields, message",
    [
        (lambda where: None, {}, "no .*.parquet: expected train-"),
        (lambda where: write(where / "a.parquet", [0, 1], column="x", y=[1, 2]), {}, "which are the labels. .*of x, y"),
        (lambda where: write(where / "a.parquet", [0, 1]), {"label": "kind"}, "no labels kind: expected a column of"),
        (lambda where: pq.write_table(pa.table({"label": [0]}), where / "a.parquet"), {}, "no image files among them"),
        (lambda where: (where / "a.parquet").write_bytes(b"PAR1 not"), {}, "a.parquet: cannot be read"),
        (
            lambda where: [write(where / name / "train.parquet", [0, 1]) for name in "ab"],
            {},
            "several sets, in .*a, .*b",
        ),
        (lambda where: write(where / "a.parquet", [-1, -1]), {}, "no row has a label"),
        (
            lambda where: write(where / "train-0-of-3.parquet", [0, 1]),
            {},
            "2 of 3 files like train-0.* missing, the first",
        ),
        (
            lambda where: write(where / "a.parquet", [0.5, 1.0]),
            {},
            "row 0: label 0.5: expected a whole number or a word",
        ),
        (lambda where: write(where / "a.parquet", [0, 2**40]), {}, "row 1: label 1099511627776: expected a whole"),
        (lambda where: write(where / "a.parquet", [0, 5], names=["cat"]), {}, "row 1: label 5: there are 1 names"),
        (lambda where: write(where / "a.parquet", [0, 1], image="a", b=[b"", b""]), {}, "which are the images, a or b"),
        (lambda where: write(where / "train.parquet", [0, 1]), {"test_split": "train"}, "expected another split than"),
        (lambda where: (where / "a.parquet").symlink_to("gone"), {}, "a.parquet: links to what is not there"),
        (lambda where: (where / "a.parquet").write_bytes(b"version https://git-lfs\n"), {}, "do git lfs pull"),
    ],
)
def test_files_that_are_not_what_they_should_be(make, fields, message, tmp_path):
    make(tmp_path)
    refused(tmp_path, message, (ValueError, OSError), **{"holdout": 0.5} | fields)


def test_files_that_number_their_classes_otherwise(tmp_path):
    """A label is the class of its name in its own file, words and numbers alike; and bytes come in any form."""
    write(tmp_path / "train-0-of-2.parquet", [0, 1, 2], names=["cat", "dog", "owl"])
    write(tmp_path / "train-1-of-2.PARQUET", [0, 1], first=3, names=["dog", "cat"])
    write(tmp_path / "extra.parquet", [0])
    plain = pa.table({"mask": [b"x"] * 2, "image": pa.array(FILES[5:7], pa.large_binary()), "label": ["dog", "cat"]})
    pq.write_table(plain, tmp_path / "test.parquet")
    spec, train, test = read(tmp_path)
    assert spec.class_names == ("cat", "dog", "owl")
    assert train == {0: 0, 1: 1, 2: 2, 3: 1, 4: 0}
    assert test == {5: 1, 6: 0}
    assert spec.notes == ("left out, of no split that is known: extra.parquet (1)", "no test images of owl (1)")


WORDS = pa.array(["b", "a"])


@pytest.mark.parametrize(
    "labels",
    [WORDS.dictionary_encode(), WORDS.cast(pa.large_string()), pa.array([1.0, 0.0]), pa.array([True, False])],
    ids=lambda labels: str(labels.type),
)
def test_types_of_labels(labels, tmp_path):
    write(tmp_path / "train.parquet", labels)
    write(tmp_path / "test.parquet", labels)
    assert read(tmp_path)[1] == {0: 1, 1: 0}


def test_labels_and_rows_that_do_not_fit(tmp_path):
    write(tmp_path / "train.parquet", ["cat", "dog"])
    write(tmp_path / "test.parquet", ["cow"])
    refused(tmp_path, "split test: label 'cow': no class of that name in train")
    pq.write_table(
        pa.table({"image": [{"bytes": None, "path": "a.png"}] * 4, "label": [0, 1] * 2}), tmp_path / "train.parquet"
    )
    write(tmp_path / "test.parquet", [1])
    with pytest.raises(ValueError, match="column image has names of image files and no files"):
        SOURCES["parquet"].load(config(tmp_path))
