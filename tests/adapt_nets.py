"""Small ResNets with batch norm and dropout, of modules of flax.linen, flax.nnx and equinox."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from lpjax import adapt

try:
    import equinox as eqx
except ImportError:
    eqx = None

WIDTH = 4
EPSILON = 1e-3
SIZE = (3, 3)


class LinenBlock(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool):
        y = nn.BatchNorm(use_running_average=not train, epsilon=EPSILON)(x)
        y = nn.Conv(WIDTH, SIZE, use_bias=False)(nn.relu(y))
        y = nn.relu(nn.BatchNorm(use_running_average=not train, use_scale=False)(y))
        y = nn.Dropout(self.rate, deterministic=not train)(y)
        return x + nn.Conv(WIDTH, SIZE)(y)


class LinenHead(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes)(x.mean((1, 2)))


def linen_resnet(*, classes):
    return adapt(nn.Sequential([nn.Conv(WIDTH, SIZE), *[LinenBlock()] * 3, LinenHead(classes)]))


class NnxBlock(nnx.Module):
    def __init__(self, rate=0.5, *, rngs):
        self.first_norm = nnx.BatchNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.first = nnx.Conv(WIDTH, WIDTH, SIZE, use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(WIDTH, use_scale=False, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.second = nnx.Conv(WIDTH, WIDTH, SIZE, rngs=rngs)

    def __call__(self, x):
        y = self.first(nnx.relu(self.first_norm(x)))
        return x + self.second(self.dropout(nnx.relu(self.norms[0](y))))


class NnxHead(nnx.Module):
    def __init__(self, classes, *, rngs):
        self.linear = nnx.Linear(WIDTH, classes, rngs=rngs)

    def __call__(self, x):
        return self.linear(x.mean((1, 2)))


def nnx_resnet(*, classes):
    stem, head = lambda rngs: nnx.Conv(1, WIDTH, SIZE, rngs=rngs), lambda rngs: NnxHead(classes, rngs=rngs)
    return adapt([stem, *[lambda rngs: NnxBlock(rngs=rngs)] * 3, head])


def trained_resnet(*, classes):
    """Of modules that hold their weights."""
    blocks = [NnxBlock(rngs=nnx.Rngs(seed)) for seed in range(3)]
    return adapt([nnx.Conv(1, WIDTH, SIZE, rngs=nnx.Rngs(3)), *blocks, NnxHead(classes, rngs=nnx.Rngs(4))])


if eqx:

    class EquinoxStem(eqx.Module):
        conv: eqx.nn.Conv2d

        def __init__(self, *, key):
            self.conv = eqx.nn.Conv2d(1, WIDTH, 3, padding=1, key=key)

        def __call__(self, x):
            return self.conv(jnp.moveaxis(x, -1, 0))

    class EquinoxBlock(eqx.Module):
        first_norm: eqx.nn.BatchNorm
        first: eqx.nn.Conv2d
        norms: list
        dropout: eqx.nn.Dropout
        second: eqx.nn.Conv2d

        def __init__(self, rate=0.5, *, key):
            first, second = jax.random.split(key)
            self.first_norm = eqx.nn.BatchNorm(WIDTH, "batch", eps=EPSILON, mode="batch")
            self.first = eqx.nn.Conv2d(WIDTH, WIDTH, 3, padding=1, use_bias=False, key=first)
            self.norms = [eqx.nn.BatchNorm(WIDTH, "batch", channelwise_affine=False, mode="batch")]
            self.dropout = eqx.nn.Dropout(rate)
            self.second = eqx.nn.Conv2d(WIDTH, WIDTH, 3, padding=1, key=second)

        def __call__(self, x, state, *, key):
            y, state = self.first_norm(x, state)
            y, state = self.norms[0](self.first(jax.nn.relu(y)), state)
            return x + self.second(self.dropout(jax.nn.relu(y), key=key)), state

    class EquinoxHead(eqx.Module):
        linear: eqx.nn.Linear

        def __init__(self, classes, *, key):
            self.linear = eqx.nn.Linear(WIDTH, classes, key=key)

        def __call__(self, x):
            return self.linear(x.mean((1, 2)))


def equinox_resnet(*, classes):
    stem, head = lambda key: EquinoxStem(key=key), lambda key: EquinoxHead(classes, key=key)
    return adapt([stem, *[lambda key: EquinoxBlock(key=key)] * 3, head])
