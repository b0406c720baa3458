"""Pre-activation ResNet-1001, of bottlenecks, on CIFAR-10, eight stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/cifar10_preact_resnet1001.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network: He et al., arXiv:1603.05027; training as in arXiv:1512.03385 (64,000 steps, divided by 10 after 32,000 and
48,000).  Published test error 4.62 % (arXiv:1603.05027, abstract).
That is backprop's; the error of coarse_adjoint has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.published import cifar10_resnet


def get_config() -> ConfigDict:
    config = cifar10_resnet()
    config.method = "coarse_adjoint"
    config.num_stages = 8
    config.model = {"function": "preact_resnet", "depth": 1001}
    config.aux.tied = True  # gains a point with eight stages, nothing up to four: docs/method.md
    config.aux.width = 0.25
    config.remat = True
    return config
