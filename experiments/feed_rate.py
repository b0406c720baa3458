"""README's feeding rates: training images a second of each kind of source, with nothing else to do.

    python -m experiments.feed_rate [--dir=FOLDER] [--out=experiments/results/feed_rate.json]

Batches of 128 until they are on the device, augmentation in the step left out, but for image files decoding, random
resized crop to 224 and all.  Real digits; real Fashion-MNIST if its IDX files are in --dir; random pixels in CIFAR's
shape (a set in memory costs the same whatever it shows); generated JPEGs of ImageNet's usual 500x375 (its files are
larger, 110 kB on average: count on less).  Medians of `repeats`.  About a minute on 2 cores.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from experiments.provenance import provenance
from lpjax.config.schema import Config, DataConfig
from lpjax.data import SOURCES
from lpjax.data.feed import make_feed
from lpjax.data.source import Dataset, Stream
from lpjax.parallel.mesh import make_mesh
from lpjax.training.writers import write_json

BATCH = 128
JPEGS = 512


def random_cifar() -> Dataset:
    """Arrays of CIFAR-10's shape."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8), rng.integers(0, 10, 50_000).astype(np.int32)
    return Dataset(images, labels, images[:10_000], labels[:10_000], np.full(3, 0.5), np.full(3, 0.25))


def write_jpegs(folder: Path) -> float:
    """JPEGS files in two classes, blurred noise with fine noise on top; returns their mean size in bytes."""
    rng, sizes = np.random.default_rng(0), []
    for i in range(JPEGS):
        path = folder / ("test" if i < 8 else "train") / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + rng.normal(0, 14, (375, 500, 3)).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=87)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def images_per_second(data: Dataset | Stream, config: Config, seconds: float) -> float:
    """Rate of the feed over about so many seconds, after a warm-up."""
    batches = make_feed(data, config, make_mesh(1, 1)).train()
    for _ in range(10):
        jax.block_until_ready(next(batches).image)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        jax.block_until_ready(next(batches).image)
        count += BATCH
    return count / (time.perf_counter() - start)


def markdown(rows: list[dict]) -> str:
    """The table of the README."""
    lines = ["| source | images | fed | images/s |", "|---|---|---|---|"]
    lines += [f"| {row['source']} | {row['images']} | {row['fed']} | {row['images_per_second']:,.0f} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", default="/usr/share/datasets/fashion-mnist", help="folder of Fashion-MNIST's IDX files"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/feed_rate.json"))
    args = parser.parse_args()
    config = Config(num_stages=1, batch_size=BATCH)
    rows: list[dict] = []

    def measure(source: str, images: str, fed: str, data: Dataset | Stream, config: Config = config) -> None:
        rates = [images_per_second(data, config, 2.0) for _ in range(args.repeats)]
        rows.append({"source": source, "images": images, "fed": fed, "images_per_second": statistics.median(rates)})
        rows[-1]["runs"] = rates
        print(rows[-1], flush=True)

    resident = "gathered on the device"
    measure("digits", "8x8", resident, SOURCES["digits"].load(DataConfig()))
    if Path(args.dir).is_dir():
        data = DataConfig(name="fashion_mnist", dir=args.dir)
        measure("fashion_mnist, mnist, idx", "28x28", resident, SOURCES["fashion_mnist"].load(data))
    measure("cifar10, cifar100", "32x32x3", resident, random_cifar())
    with tempfile.TemporaryDirectory() as folder:
        size = write_jpegs(Path(folder))
        data = DataConfig(name="folder", dir=folder, crop=0)
        files = f"JPEGs of 500x375, {size / 1e3:.0f} kB"
        streaming = Config(num_stages=1, batch_size=BATCH, data=data)
        measure("imagenet2012, folder", files, "decoded, cropped to 224", SOURCES["folder"].load(data), streaming)
    header = {
        **provenance("experiments.feed_rate", sys.argv[1:]),
        "repeats": args.repeats,
    }
    write_json(args.out, header | {"rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
