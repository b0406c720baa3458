"""Pre-activation ResNet-164, of bottlenecks, on CIFAR-10, four stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/cifar10_preact_resnet164.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network: He et al., arXiv:1603.05027; training as in arXiv:1512.03385 (64,000 steps, divided by 10 after 32,000 and
48,000).  Published test error 5.46 % (arXiv:1603.05027).
That is backprop's; the error of coarse_adjoint has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.published import cifar10_resnet


def get_config() -> ConfigDict:
    config = cifar10_resnet()
    config.method = "coarse_adjoint"
    config.num_stages = 4
    config.model = {"function": "preact_resnet", "depth": 164}
    config.aux.width = 0.25
    return config
