"""ResNet-1202 on CIFAR-10, sixteen stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/cifar10_resnet1202.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network and training: He et al., arXiv:1512.03385, section 4.2: 64,000 steps, the rate divided by 10 after 32,000 and
48,000; an epoch of warm-up instead of the smaller first rate.  Published test error 7.93 % (table 6).
That is backprop's; the error of coarse_adjoint has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.published import cifar10_resnet


def get_config() -> ConfigDict:
    config = cifar10_resnet()
    config.method = "coarse_adjoint"
    config.num_stages = 16
    config.model.depth = 1202
    config.model.width = 16
    config.aux.tied = True  # gains a point with eight stages, nothing up to four: docs/method.md
    config.remat = True
    return config
