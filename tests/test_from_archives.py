"""From an archive or a folder on disk to result.json."""

import io
import json

import numpy as np
import pytest
from data_makers import arguments, encoded, make_cifar10, make_folder, make_imagenet
from rich.console import Console
from test_config import load
from test_main import ROOT

from lpjax.config.load import from_config_dict
from lpjax.data import prepare
from lpjax.training import loop, summary
from lpjax.training import run as runs

ONE_EPOCH = {"num_epochs": 1, "optimizer.warmup_epochs": 0.0, "aux_optimizer.warmup_epochs": 0.0, "log_every": 1}
"""Of a recipe for many epochs."""
SMALL = {"model.depth": 8, "model.width": 4, "num_stages": 2, "aux.blocks_per_stage": 0}


def one_epoch(config, workdir, fields):
    """result.json of one epoch of a recipe with some fields changed, and what was printed."""
    values = load(ROOT / f"configs/{config}.py").get_config()
    values.update_from_flattened_dict(ONE_EPOCH | fields)
    console = Console(file=io.StringIO(), width=200)
    run = runs.prepare(from_config_dict(values.to_dict()))
    summary.print_tables(console, run)
    workdir.mkdir(exist_ok=True)
    return loop.train(run, workdir, console), console.file.getvalue()


def test_cifar(tmp_path):
    archive, train_split, test_split = make_cifar10(tmp_path)
    assert prepare.main(["", *arguments("cifar10", archive, tmp_path / "data")]) == 0
    count, num_test = len(train_split.labels), len(test_split.labels)
    result, _ = one_epoch("cifar10_resnet56", tmp_path, SMALL | {"data.dir": str(tmp_path / "data"), "batch_size": 20})
    assert (result["steps"], result["test_examples"]) == (count // 20, num_test)


@pytest.mark.slow
def test_imagenet_and_a_resnet_50(tmp_path):
    """One epoch of the recipe at a small size; the pictures are noise, so no accuracy is asked for."""
    source, train_split, test_split = make_imagenet(tmp_path)
    assert prepare.main(["", *arguments("imagenet2012", source, tmp_path / "data")]) == 0
    fields = {"data.dir": str(tmp_path / "data"), "data.image_size": 32, "batch_size": 8}
    result, output = one_epoch("imagenet_resnet50", tmp_path, fields | {"eval.calibration_batches": 1})
    assert (result["steps"], result["test_examples"]) == (len(train_split) // 8, len(test_split))
    assert "2 x bottleneck-64" in output
    assert np.isfinite(result["test_loss"])


def pictures(count, classes=2):
    rng = np.random.default_rng(0)
    return {f"{i % classes}/{i}.png": encoded(rng.integers(0, 256, (12, 12, 3), np.uint8)) for i in range(count)}


FOLDER = SMALL | {"data.name": "folder", "data.image_size": 8, "data.crop": 0, "batch_size": 16}


def test_damaged_images_are_skipped_counted_and_named(tmp_path):
    files, tests = pictures(32) | {"0/bad.jpg": b"no image"}, pictures(6) | {"1/torn.png": pictures(1)["0/0.png"][:60]}
    data = make_folder(tmp_path / "data", files, tests)
    result, output = one_epoch("digits", tmp_path, FOLDER | {"data.dir": str(data)})
    assert (result["steps"], result["corrupt_images"], result["test_examples"]) == (2, 1, 6)
    assert f"skipped {data / 'train/0/bad.jpg'}" in output
    assert "1 test images left out: they cannot be decoded" in output
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged[-2]["corrupt_images"] == 1
