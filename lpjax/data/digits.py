"""scikit-learn's digits: 1,797 real 8x8 grey images of handwritten digits, part of the package: no download."""

import numpy as np

from lpjax.config.schema import DataConfig
from lpjax.data.source import Dataset, Source, Spec

NUM_TEST = 360
SPLIT_SEED = 0
"""Of the held-out split: fixed, never the run's seed, so that all runs are tested on the same images."""


def _load(config: DataConfig) -> Dataset:
    # Here: it takes as long to import as JAX, and other sets do without it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # stored as 0..16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int32), test_size=NUM_TEST, random_state=SPLIT_SEED, stratify=labels
    )
    return Dataset.of((train_x, train_y), (test_x, test_y))


def _spec(config: DataConfig) -> Spec:
    return Spec((8, 8, 1), classes=10, num_train=1797 - NUM_TEST, num_test=NUM_TEST, class_names=tuple("0123456789"))


digits = Source("digits", describe=_spec, load=_load, published=_spec)
