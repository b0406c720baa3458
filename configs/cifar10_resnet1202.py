"""ResNet-1202 on CIFAR-10, sixteen stages trained layer-parallel.

    python -m lpjax.main --config=configs/cifar10_resnet1202.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network and recipe: He et al., arXiv:1512.03385, section 4.2: 64,000 steps, the rate divided by 10 after 32,000 and
48,000; an epoch of warm-up instead of the smaller first rate.  Published test error 7.93 % (table 6).
The figure is of backprop; the layer-parallel one has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop = 4
    config.data.flip = True
    config.model.depth = 1202
    config.model.width = 16
    config.num_stages = 16
    config.method = "coarse_adjoint"
    config.aux.grid = 16
    config.aux.tied = True  # gains a point with eight stages, nothing up to four: docs/method.md
    config.multiplier = "coarse_tail"
    config.remat = True
    config.batch_size = 128
    config.num_epochs = 164
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.learning_rate = 0.1
        optimizer.nesterov = False
        optimizer.weight_decay = 1e-4
        optimizer.schedule = "step"
        optimizer.step_epochs = (82, 123)
    return config
