"""Training images a second that each kind of data source feeds, with nothing else to do.

Batches of 128 until they are on the device, without the augmentation in the step, but for image files decoding, random
resized crop to 224 and all.  Real digits; real Fashion-MNIST if its IDX files are in --folder; random pixels in CIFAR's
shape; generated JPEGs of ImageNet's usual 500x375 (its files are larger: count on less).  About a minute on 2 cores.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from lpjax.config.schema import Config, DataConfig
from lpjax.data import SOURCES
from lpjax.data.feed import make_feed
from lpjax.data.source import Data, Dataset
from lpjax.parallel.mesh import make_mesh

BATCH, JPEGS, FASHION = 128, 512, "/usr/share/datasets/fashion-mnist"


def write_jpegs(folder: Path) -> float:
    """Write JPEGs in two classes, blurred noise with fine noise on top; their mean size in bytes."""
    rng, sizes = np.random.default_rng(0), []
    for i in range(JPEGS):
        path = folder / ("test" if i < 8 else "train") / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        noise = rng.normal(0, 14, (375, 500, 3)).astype(np.int16)
        noisy = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16) + noise
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=87)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def images_per_second(data: Data, config: Config, seconds: float) -> float:
    """Rate of the feed over about so many seconds, after a warm-up."""
    batches = make_feed(data, config, make_mesh(1, 1)).train()
    jax.block_until_ready([next(batches).image for _ in range(10)])
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        jax.block_until_ready(next(batches).image)
        count += BATCH
    return count / (time.perf_counter() - start)


def sources(folder: str, made: Path) -> Iterator[tuple[str, str, str, DataConfig, Data]]:
    """What is fed, with Fashion-MNIST of a folder and JPEGs made in another: name, images, way, and itself."""
    resident, rng = "gathered on the device", np.random.default_rng(0)
    yield "digits", "8x8", resident, DataConfig(), SOURCES["digits"].load(DataConfig())
    if Path(folder).is_dir():
        data = DataConfig(name="fashion_mnist", dir=folder)
        yield "fashion_mnist, mnist, idx", "28x28", resident, data, SOURCES["fashion_mnist"].load(data)
    images, labels = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8), rng.integers(0, 10, 50_000).astype(np.int32)
    cifar = Dataset(images, labels, images[:10_000], labels[:10_000], np.full(3, 0.5), np.full(3, 0.25))
    yield "cifar10, cifar100", "32x32x3", resident, DataConfig(), cifar
    files = f"JPEGs of 500x375, {write_jpegs(made) / 1e3:.0f} kB"
    data = DataConfig(name="folder", dir=str(made), crop=0)
    yield "imagenet2012, folder", files, "decoded, cropped to 224", data, SOURCES["folder"].load(data)


def run(call: Call, folder: str = FASHION, repeats: int = 5, seconds: float = 2.0) -> Iterator[Json]:
    """The JSON after every source."""
    rows: list[Json] = []
    with tempfile.TemporaryDirectory() as made:
        for source, shown, fed, data_config, data in sources(folder, Path(made)):
            config = Config(num_stages=1, batch_size=BATCH, data=data_config)
            rates = [images_per_second(data, config, seconds) for _ in range(repeats)]
            told = {"source": source, "images": shown, "fed": fed, "runs": rates}
            rows.append(told | {"images_per_second": statistics.median(rates)})
            print(rows[-1], flush=True)
            yield {"repeats": repeats, "rows": rows}


def by_source(made: Json) -> str:
    """A line a source."""
    shown = [[row["source"], row["images"], row["fed"], f"{row['images_per_second']:,.0f}"] for row in made["rows"]]
    return markdown.table(["source", "images", "fed", "images/s"], shown)


EXPERIMENT = Experiment(run, out="feed_rate", show=by_source, tables={"feed": Table(by_source, ("feed_rate",))})
