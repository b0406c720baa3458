"""ResNets in torch, channels last, on one thread or a GPU: a worker like `experiments.speed.worker`, without lpjax."""

# mypy: ignore-errors
import time

import torch
from torch import nn
from torch.nn import functional

from experiments.harness.worker import serve


class Block(nn.Module):
    """Of arXiv:1512.03385 with shortcut A."""

    def __init__(self, channels, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)
        self.stride, self.new = stride, features - channels

    def forward(self, x):
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.relu(y + (functional.pad(x, (0, 0, 0, 0, 0, self.new)) if self.new else x))


def make_net(depth, width, classes, channels):
    layers = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for group in range(3):
        for i in range((depth - 2) // 6):
            layers.append(Block(before, width * 2**group, 2 if group and i == 0 else 1))
            before = width * 2**group
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Worker:
    """One network and its optimiser."""

    def prepare(self, name, model, batch, image):
        torch.set_num_threads(1)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        height, width, channels = image
        net = make_net(**model, channels=channels).to(self.device, memory_format=torch.channels_last)
        x = torch.randn(batch, channels, height, width, device=self.device)
        self.x = x.to(memory_format=torch.channels_last)
        self.y = torch.randint(0, model["classes"], (batch,), device=self.device)
        self.optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.net = torch.compile(net) if self.device == "cuda" else net
        return {"parameters": sum(p.numel() for p in net.parameters()), "torch": torch.__version__}

    def step(self, name, steps):
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.net(self.x), self.y)
            loss.backward()
            self.optimizer.step()
            loss.item()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}


if __name__ == "__main__":
    serve(Worker())
