"""Start a config file from the settings of a published training, which several files of `configs/` share.

They are part of the package, so that a config file can be given by any path, from any folder: it imports only lpjax.
Each returns `default_config()` with data set, optimisers, length and the AuxNet's grid set.  The file adds the method,
the stages and the network.
"""

from typing import Any

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def cifar10_resnet() -> ConfigDict:
    """Give the settings of He et al., arXiv:1512.03385, section 4.2, for CIFAR-10.

    64,000 steps, the rate divided by 10 after 32,000 and 48,000; an epoch of warm-up instead of the smaller first rate.

    Returns:
      The configuration, for a file to complete.
    """
    config = _cifar("cifar10", num_epochs=164)
    _both_optimizers(config, nesterov=False, weight_decay=1e-4, step_epochs=(82, 123))
    return config


def cifar_wide_resnet(name: str) -> ConfigDict:
    """Give the settings of Zagoruyko and Komodakis, arXiv:1605.07146, section 3, for CIFAR.

    200 epochs, the rate times 0.2 after 60, 120 and 160.

    Args:
      name: Of the data set, "cifar10" or "cifar100".

    Returns:
      The configuration, for a file to complete.
    """
    config = _cifar(name, num_epochs=200)
    _both_optimizers(config, weight_decay=5e-4, step_epochs=(60, 120, 160), step_factor=0.2)
    return config


def imagenet_resnet() -> ConfigDict:
    """Give the settings of Goyal et al., arXiv:1706.02677, for ImageNet.

    90 epochs, the rate 0.1 for batches of 256, divided by 10 after 30, 60 and 80; five epochs of warm-up.

    Returns:
      The configuration, for a file to complete.
    """
    config = default_config()
    config.data.update(name="imagenet2012", image_size=224, flip=True)
    config.data.crop = 0  # the random resized crop is made when the image is read
    config.aux.grid = 28
    config.bfloat16 = True
    config.batch_size = 256
    config.num_epochs = 90
    config.log_every = 100
    _both_optimizers(
        config,
        learning_rate=0.1 * config.batch_size / 256,
        nesterov=False,
        weight_decay=1e-4,
        step_epochs=(30, 60, 80),
        warmup_epochs=5.0,
    )
    return config


def _cifar(name: str, *, num_epochs: int) -> ConfigDict:
    config = default_config()
    config.data.update(name=name, crop=4, flip=True)
    config.aux.grid = 16
    config.batch_size = 128
    config.num_epochs = num_epochs
    return config


def _both_optimizers(config: ConfigDict, **fields: Any) -> None:
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.update({"learning_rate": 0.1, "schedule": "step", **fields})
