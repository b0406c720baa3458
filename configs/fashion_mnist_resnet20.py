"""ResNet-20 on Fashion-MNIST, four stages trained by layer_parallel.

    python -m lpjax.main --config=configs/fashion_mnist_resnet20.py --workdir=runs/fashion_mnist_resnet20

Data: the four IDX files, from Debian's package dataset-fashion-mnist or https://github.com/zalandoresearch/fashion-mnist
(`--config.data.dir=FOLDER`).  Network and training: He et al., arXiv:1512.03385, section 4.2, with a cosine schedule.
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "fashion_mnist"
    config.data.dir = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts it
    config.data.crop = 2
    config.data.flip = True
    config.model.depth = 20
    config.model.width = 16
    config.method = "layer_parallel"
    config.num_stages = 4
    config.standardise = True  # as layer_parallel needs it; so that every method trains the same network
    config.multiplier = "coarse_tail"
    config.num_epochs = 30
    config.batch_size = 128
    config.log_every = 50
    return config
