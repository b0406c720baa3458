"""WRN-16-4 on CIFAR-10, four stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/cifar10_wrn16_4.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar10 --source=ARCHIVE --data_dir=DIR
Network and training: Zagoruyko and Komodakis, arXiv:1605.07146, section 3: 200 epochs, the rate times 0.2 after 60, 120
and 160; dropout 0.3.  A small one, for trying things out; no published figure is known to us.
"""

from ml_collections import ConfigDict

from lpjax.config.published import cifar_wide_resnet


def get_config() -> ConfigDict:
    config = cifar_wide_resnet("cifar10")
    config.method = "coarse_adjoint"
    config.num_stages = 4
    config.model = {"function": "wide_resnet", "depth": 16, "widen": 4, "dropout": 0.3}
    config.aux.width = 0.5
    return config
