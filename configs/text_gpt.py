"""A small language model on the sources of Python's standard library, bytes for tokens, in four stages trained by
delayed gradients.

    python -m lpjax.main --config=configs/text_gpt.py --workdir=runs/text_gpt

Four blocks of width 64 on windows of 64 bytes, the first 2 million bytes.  Three minutes on 2 cores.  The whole library
is read with --config.data.train_examples=None, a text of your own with --config.data.dir=PATH, a file or a folder.
"""

from ml_collections import config_dict

from lpjax.config.load import default_config


def get_config() -> config_dict.ConfigDict:
    config = default_config()
    config.data.name = "text"
    config.data.sequence = 64
    config.data.train_examples = 32_000
    config.data.crop = 0  # of images
    config.model = {"function": "gpt", "blocks": 4, "width": 64, "heads": 4, "activation": "gelu", "dropout": 0.0}
    config.aux.function = "own_units"
    config.aux.width = 0.5
    config.method = "delayed"
    config.delayed.micro_batches = 8
    config.num_stages = 4
    config.batch_size = 32
    config.eval.sample = 48
    config.num_epochs = 1
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.name = "adamw"
        optimizer.learning_rate = 3e-3
        optimizer.weight_decay = 0.1
        optimizer.warmup_epochs = 0.1
        optimizer.clip_norm = 1.0
    return config
