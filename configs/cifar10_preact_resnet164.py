"""Pre-activation ResNet-164, of bottlenecks, on CIFAR-10, four stages trained layer-parallel.

    python -m lpjax.main --config=configs/cifar10_preact_resnet164.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network: He et al., arXiv:1603.05027; recipe as in arXiv:1512.03385 (64,000 steps, divided by 10 after 32,000 and
48,000).  Published test error 5.46 % (arXiv:1603.05027).
The figure is of backprop; the layer-parallel one has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop = 4
    config.data.flip = True
    config.model = {"function": "lpjax.models.preact_resnet:preact_resnet", "depth": 164}
    config.num_stages = 4
    config.method = "coarse_adjoint"
    config.aux.grid = 16
    config.multiplier = "coarse_tail"
    config.aux.width = 0.25
    config.batch_size = 128
    config.num_epochs = 164
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.learning_rate = 0.1
        optimizer.nesterov = False
        optimizer.weight_decay = 1e-4
        optimizer.schedule = "step"
        optimizer.step_epochs = (82, 123)
    return config
