"""ResNet-18 on ImageNet, four stages trained by coarse_adjoint.

    python -m lpjax.main --config=configs/imagenet_resnet18.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare imagenet2012 --source=FOLDER_OF_TARS --data_dir=DIR; a folder that
tensorflow-datasets prepared as array_record will do as well.
Network: He et al., arXiv:1512.03385, table 1; training: Goyal et al., arXiv:1706.02677: 90 epochs, 0.1 for 256 images,
divided by 10 after 30, 60 and 80, five epochs of warm-up.  Published top-1 accuracy 69.76 % (torchvision's
IMAGENET1K_V1 weights, trained much like this).  That is backprop's; coarse_adjoint's has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.published import imagenet_resnet


def get_config() -> ConfigDict:
    config = imagenet_resnet()
    config.method = "coarse_adjoint"
    config.num_stages = 4
    config.model = {"function": "imagenet_resnet", "depth": 18}
    config.aux.width = 1.0
    return config
