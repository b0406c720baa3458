"""Weights from PyTorch: networks that return what their torch originals do, from the same state dict."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from lpjax.models.from_torch import from_torch, torchvision_resnet_names, wide_resnet_names
from lpjax.models.preact_resnet import wide_resnet
from lpjax.models.resnet import imagenet_resnet
from lpjax.nn import chain
from lpjax.nn.chain import Mode, make_chain

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

pytestmark = pytest.mark.usefixtures("x64")


class WideBlock(nn.Module):
    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(features)
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        if channels != features:
            self.convShortcut = nn.Conv2d(channels, features, 1, stride, bias=False)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        shortcut = self.convShortcut(active) if hasattr(self, "convShortcut") else x
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideGroup(nn.Module):
    def __init__(self, blocks: int, channels: int, features: int, stride: int):
        super().__init__()
        rest = [WideBlock(features, features, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(channels, features, stride), *rest)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """arXiv:1605.07146, with the names of WideResNet-pytorch."""

    def __init__(self, depth: int, widen: int, classes: int):
        super().__init__()
        w, blocks = [16, 16 * widen, 32 * widen, 64 * widen], (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideGroup(blocks, w[0], w[1], 1)
        self.block2 = WideGroup(blocks, w[1], w[2], 2)
        self.block3 = WideGroup(blocks, w[2], w[3], 2)
        self.bn1 = nn.BatchNorm2d(w[3])
        self.fc = nn.Linear(w[3], classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def randomised(model):
    """The model in double precision, with batch norms and biases unlike those of any initialisation."""
    torch.manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("weight", "running_var")) and value.ndim == 1:
                value.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.3)
    return model


def make_images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, size, size + 1, 3))  # not square: no axes are mistaken


def assert_same_logits(network, model, names, images, *, train=False):
    params, stats = from_torch(network, model.state_dict(), names)
    expected = model.train(train)(torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy()
    actual, stats = chain.apply(network, params, stats, jnp.asarray(images), Mode(train))
    assert np.ptp(expected, axis=0).min() > 1e-3 * np.abs(expected).max()  # the logits depend on the image
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    return stats


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_resnets(depth):
    models = pytest.importorskip("torchvision").models
    model = randomised(getattr(models, f"resnet{depth}")(num_classes=11))
    images = make_images(64)
    network = make_chain(imagenet_resnet(depth=depth, classes=11), images.shape[1:])
    assert_same_logits(network, model, torchvision_resnet_names, images)


@pytest.mark.parametrize("depth, widen", [(16, 4), (22, 2), (16, 1)])
def test_wide_resnets(depth, widen):
    model, images = randomised(WideResNet(depth, widen, classes=5)), make_images(16)
    network = make_chain(wide_resnet(depth=depth, widen=widen, classes=5), images.shape[1:])
    assert_same_logits(network, model, wide_resnet_names, images)


def test_batch_statistics():
    """A momentum of 1 leaves the batch's statistics in the torch model: those of every norm are compared too."""
    model, images = randomised(WideResNet(22, 2, classes=5)), make_images(16)
    network = make_chain(wide_resnet(depth=22, widen=2, classes=5), images.shape[1:])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    stats = assert_same_logits(network, model, wide_resnet_names, images, train=True)
    _, theirs = from_torch(network, model.state_dict(), wide_resnet_names)

    def means(tree):
        return [leaf for path, leaf in jax.tree.leaves_with_path(tree) if path[-1].key == "mean"]

    assert len(means(stats)) == 13  # 18 blocks of two norms in 6 repeats, and the head's
    assert_close(means(stats), means(theirs))


# ---------------------------------------------------------------- layout and what is refused


@pytest.fixture
def small():
    """A network of one block a group and its state dict, as numpy arrays."""
    network = make_chain(wide_resnet(depth=10, widen=1, classes=5), (8, 8, 3))
    return network, {key: value.numpy() for key, value in randomised(WideResNet(10, 1, 5)).state_dict().items()}


def test_numpy_arrays_in_the_layout_and_dtype_of_init(small):
    network, state_dict = small
    expected = jax.eval_shape(lambda key: chain.init(network, key), jax.random.key(0))
    trees = from_torch(network, {key: np.float32(value) for key, value in state_dict.items()}, wide_resnet_names)
    assert jax.tree.structure(trees) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(lambda a, e: (a.shape, a.dtype) == (e.shape, e.dtype), trees, expected))


def test_a_missing_key_is_named(small):
    network, state_dict = small
    del state_dict["block2.layer.0.convShortcut.weight"]
    with pytest.raises(
        ValueError, match=r"no 'block2.layer.0.convShortcut.weight', expected for unit 2 \(preact-basic"
    ):
        from_torch(network, state_dict, wide_resnet_names)


def test_keys_left_over_are_named(small):
    network, state_dict = small
    state_dict["ema.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"1 keys of the state dict are left over: ema\.weight; expected those of"):
        from_torch(network, state_dict, wide_resnet_names)


def test_a_deeper_network_is_not_cut_short(small):
    network, _ = small
    with pytest.raises(ValueError, match=r"30 keys .* left over: block1.layer.1.bn1.weight, .*, \.\.\.; expected"):
        from_torch(network, WideResNet(16, 1, 5).state_dict(), wide_resnet_names)


@pytest.mark.parametrize(
    "key, found, expected",
    [
        ("conv1.weight", (16, 1, 3, 3), (16, 3, 3, 3)),
        ("fc.weight", (64, 5), (5, 64)),
        ("bn1.running_var", (1, 64, 1, 1), (64,)),
    ],
)
def test_a_wrong_shape_is_named(small, key, found, expected):
    network, state_dict = small
    with pytest.raises(ValueError, match=re.escape(f"'{key}' has shape {found}: expected {expected}; build")):
        from_torch(network, {**state_dict, key: np.zeros(found)}, wide_resnet_names)


def test_names_of_another_network_are_refused(small):
    network, state_dict = small
    with pytest.raises(ValueError, match=r"part '' of unit 0 \(stem-16\): expected `names` to give its name"):
        from_torch(network, state_dict, torchvision_resnet_names)
