"""ResNet-18 on ImageNet, four stages trained layer-parallel.

    python -m lpjax.main --config=configs/imagenet_resnet18.py --config.data.dir=DIR --workdir=RUN

Data: python -m lpjax.data.prepare imagenet2012 --source=FOLDER_OF_TARS --data_dir=DIR; a folder that
tensorflow-datasets prepared as array_record will do as well.
Network: He et al., arXiv:1512.03385, table 1; recipe: Goyal et al., arXiv:1706.02677: 90 epochs, 0.1 for 256 images,
divided by 10 after 30, 60 and 80, five epochs of warm-up.  Published top-1 accuracy 69.76 % (torchvision's
IMAGENET1K_V1 weights, a recipe much like it), of backprop; the layer-parallel one has not been measured yet.
"""

from ml_collections import ConfigDict

from lpjax.config.load import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.crop = 0  # the random resized crop is made when the image is read
    config.data.flip = True
    config.model = {"function": "lpjax.models.imagenet_resnet:imagenet_resnet", "depth": 18}
    config.num_stages = 4
    config.method = "coarse_adjoint"
    config.aux.grid = 28
    config.multiplier = "coarse_tail"
    config.aux.width = 1.0
    config.bfloat16 = True
    config.batch_size = 256
    config.num_epochs = 90
    config.log_every = 100
    for optimizer in (config.optimizer, config.aux_optimizer):
        optimizer.learning_rate = 0.1 * config.batch_size / 256
        optimizer.nesterov = False
        optimizer.weight_decay = 1e-4
        optimizer.schedule = "step"
        optimizer.step_epochs = (30, 60, 80)
        optimizer.warmup_epochs = 5.0
    return config
