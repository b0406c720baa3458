"""ResNet-110 on CIFAR-10, four stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/cifar10_resnet110.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network and training: He et al., arXiv:1512.03385, section 4.2: 64,000 steps, the rate divided by 10 after 32,000 and
48,000; an epoch of warm-up instead of the smaller first rate.  Published test error 6.43 % (table 6, the best of five
runs).  That is backprop's; the error of coarse_adjoint has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.published import cifar10_resnet


def get_config() -> ConfigDict:
    config = cifar10_resnet()
    config.method = "coarse_adjoint"
    config.num_stages = 4
    config.model.depth = 110
    config.model.width = 16
    return config
