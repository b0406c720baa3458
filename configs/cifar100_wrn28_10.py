"""WRN-28-10 on CIFAR-100, four stages trained layer-parallel.

    python -m lpjax.main --config=configs/cifar100_wrn28_10.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar100 --source=ARCHIVE --data_dir=DIR
Network and recipe: Zagoruyko and Komodakis, arXiv:1605.07146, section 3: 200 epochs, the rate times 0.2 after 60, 120
and 160; dropout 0.3.  Published test error 18.85 % (arXiv:1605.07146, table 5, with dropout).
The figure is of backprop; the layer-parallel one has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "cifar100"
    config.data.crop = 4
    config.data.flip = True
    config.model = {
        "function": "lpjax.models.preact_resnet:wide_resnet",
        "depth": 28,
        "widen": 10,
        "dropout": 0.3,
    }
    config.num_stages = 4
    config.method = "coarse_adjoint"
    config.aux.grid = 16
    config.multiplier = "coarse_tail"
    config.aux.width = 0.25
    config.batch_size = 128
    config.num_epochs = 200
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.learning_rate = 0.1
        optimizer.weight_decay = 5e-4
        optimizer.schedule = "step"
        optimizer.step_epochs = (60, 120, 160)
        optimizer.step_factor = 0.2
    return config
