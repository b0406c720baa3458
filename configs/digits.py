"""The embedded default: a ResNet-26 on scikit-learn's 8x8 digits, four stages trained layer-parallel.

python -m lpjax.main --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from lpjax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.depth = 26
    config.model.width = 16
    return config
