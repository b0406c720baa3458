"""Weights from PyTorch: networks that return what their torch originals do, from the same state dict."""

import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.models.from_torch import from_torch, wide_resnet_names
from lpjax.models.preact_resnet import wide_resnet
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


@pytest.mark.parametrize("depth, widen", [(16, 1), (22, 2)])
def test_wide_resnets(depth, widen):
    model, images = randomised(WideResNet(depth, widen, classes=5)), make_images(16)
    network = make_chain(wide_resnet(depth=depth, widen=widen, classes=5), images.shape[1:])
    assert_same_logits(network, model, wide_resnet_names, images)
