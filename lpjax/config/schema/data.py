"""The data set."""

from dataclasses import dataclass

from lpjax.config.schema.limits import at_least, bounded


@dataclass(frozen=True)
class DataConfig:
    """The data set, how it is read, and how its images are augmented.

    Attributes:
      name: One of `lpjax.SOURCES`.
      dir: Folder of the data, for sources that need one; for `text` a folder or a file.
      sequence: Tokens of an example, for `text`.
      image_size: Side in pixels of the square crop, for sources of image files of all sizes.
      channels: 3, or 1 for grey: what the image files of `folder` are decoded to.
      shrink: Images of a set in memory are averaged over shrink x shrink pixels and rounded; 1 for none.
      train_examples: The first so many of the training set of a set in memory.  Unset: all.
      validation_examples: The last so many of that training set are not trained on and take the place of the test set:
        for choosing settings without it.  Unset: none.
      holdout: Share of each class's training images that is not trained on and takes the place of the test set, for
        `folder` and `parquet`.  Unset: none.
      holdout_seed: Another one holds other images out.
      test_split: Name of the split to test on, for `folder` and `parquet`.  Unset: test, else val, valid, .. that has
        labels.
      label: Column of the labels, for `parquet`.  Unset: the one that is declared as labels, or is called so.
      crop: Pixels of zero padding for the random crop; 0 for none.
      flip: Random left-right flip.
      cutout: Side in pixels of the square that is set to the mean, 0 for none (arXiv:1708.04552).
      mixup: alpha of mixup (arXiv:1710.09412), 0 for none: each example is mixed with another one of the batch, image
        and label alike, in shares from Beta(alpha, alpha).
      label_smoothing: Share of each label that is spread evenly over all classes, in every cross entropy of training;
        tests are without.
      threads: That read and decode image files.
      prefetch: Images decoded ahead.
      max_corrupt: Image files that cannot be decoded and are skipped before training stops.
    """

    name: str = "digits"
    dir: str | None = None
    sequence: int = at_least(1, 128)
    image_size: int = at_least(1, 224)
    channels: int = 3
    shrink: int = at_least(1, 1)
    train_examples: int | None = at_least(1, None)
    validation_examples: int | None = at_least(1, None)
    holdout: float | None = bounded(None, above=0, below=1, remedy="0.1 holds a tenth out")
    holdout_seed: int = at_least(0, 0)
    test_split: str | None = None
    label: str | None = None
    crop: int = at_least(0, 1)
    flip: bool = False
    cutout: int = at_least(0, 0)
    mixup: float = at_least(0, 0.0)
    label_smoothing: float = bounded(0.0, at_least=0, below=1, remedy="0 is none")
    threads: int = at_least(1, 16)
    prefetch: int = at_least(1, 1024)
    max_corrupt: int = at_least(0, 100)
