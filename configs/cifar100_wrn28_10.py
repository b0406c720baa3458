"""WRN-28-10 on CIFAR-100, four stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/cifar100_wrn28_10.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare cifar100 --source=ARCHIVE --data_dir=DIR
Network and training: Zagoruyko and Komodakis, arXiv:1605.07146, section 3: 200 epochs, the rate times 0.2 after 60, 120
and 160; dropout 0.3.  Published test error 18.85 % (arXiv:1605.07146, table 5, with dropout).
That is backprop's; the error of coarse_adjoint has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.published import cifar_wide_resnet


def get_config() -> ConfigDict:
    config = cifar_wide_resnet("cifar100")
    config.method = "coarse_adjoint"
    config.num_stages = 4
    config.model = {"function": "wide_resnet", "depth": 28, "widen": 10, "dropout": 0.3}
    config.aux.width = 0.25
    return config
