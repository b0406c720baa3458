"""The embedded default: a ResNet-26 (width 16) on scikit-learn's 8x8 digits, four stages trained by layer_parallel.

    python -m lpjax.main --config=configs/digits.py --workdir=runs/digits

1.5 minutes on 2 cores.  Test accuracy of the composed network 0.98 to 0.99; README.md has a table over seeds, beside
serial backprop with the same settings (--config.method=serial).
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.depth = 26
    config.model.width = 16
    config.method = "layer_parallel"
    config.num_stages = 4
    config.standardise = True  # as layer_parallel needs it; so that every method trains the same network
    config.multiplier = "coarse_tail"
    config.num_epochs = 30
    config.batch_size = 64
    return config
