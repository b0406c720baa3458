"""ResNet-20 (width 8) on the first 20,000 images of Fashion-MNIST at 14x14: the default of `experiments compare`;
four stages trained by layer_parallel.

    python -m lpjax.main --config=configs/fashion_mnist_small.py --workdir=runs/fashion_mnist_small

Small, so that every method can train several times on a few CPU cores.  Data: the four IDX files, from Debian's package
dataset-fashion-mnist or https://github.com/zalandoresearch/fashion-mnist (`--config.data.dir=FOLDER`).  Network and
recipe: He et al., arXiv:1512.03385, section 4.2, narrower, with a cosine schedule.
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "fashion_mnist"
    config.data.dir = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts it
    config.data.shrink = 2
    config.data.train_examples = 20_000
    config.data.crop = 1
    config.data.flip = True
    config.model.depth = 20
    config.model.width = 8
    config.method = "layer_parallel"
    config.num_stages = 4
    config.multiplier = "coarse_tail"
    config.num_epochs = 5
    config.batch_size = 128
    config.log_every = 10
    config.optimizer.warmup_epochs = 0.5
    config.aux_optimizer.warmup_epochs = 0.5
    config.eval.every_epochs = 1
    return config
