"""The interface of a data source."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lpjax.chain import Shape


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set in memory.  Images are uint8 [N, H, W, C], labels int32 [N]; the test split is fixed.

    mean, std: per channel [C], of the training images scaled to 0..1.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class Source:
    """What is known of a data set without reading it, and how to read it.

    image_shape: [H, W, C].  load(dir): the data; raises ValueError or OSError saying what is missing from `dir`.
    """

    name: str
    image_shape: Shape
    classes: int
    num_train: int
    num_test: int
    load: Callable[[str | None], Dataset]


def channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of uint8 images scaled to 0..1."""
    scaled = images.astype(np.float64) / 255
    return scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
