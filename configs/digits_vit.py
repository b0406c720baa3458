"""A small vision transformer on scikit-learn's digits, in four stages trained by delayed gradients.

    python -m lpjax.main --config=configs/digits_vit.py --workdir=runs/digits_vit

16 patches of 2x2 pixels are the tokens.
"""

from ml_collections import config_dict

from lpjax.config.load import default_config


def get_config() -> config_dict.ConfigDict:
    config = default_config()
    config.model = {
        "function": "vit",
        "patch": 2,
        "blocks": 4,
        "width": 32,
        "heads": 4,
        "pooling": "mean",
        "dropout": 0.0,
    }
    config.aux.function = "own_units"
    config.data.crop = 0
    config.method = "delayed"
    config.delayed.micro_batches = 8
    config.num_stages = 4
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.name = "adamw"
        optimizer.learning_rate = 5e-3
    config.num_epochs = 40
    return config
