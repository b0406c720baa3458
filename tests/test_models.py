"""Layers and ResNets against independent routes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from jax import lax
from jax.sharding import PartitionSpec as P

from lpjax.models.resnet import ConvBlock
from lpjax.nn import conv as conv_forms
from lpjax.nn import layers, winograd
from lpjax.nn.chain import Mode
from lpjax.nn.conv import conv
from lpjax.nn.count import unit_flops
from lpjax.parallel.mesh import ALL_AXES, EXAMPLES, make_mesh

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    "size, stride, kernel, chunk_bytes",
    [
        ((8, 8), 1, (1, 1), 0),
        ((8, 8), 2, (3, 3), conv_forms.CHUNK_BYTES),
        ((7, 5), 1, (7, 5), conv_forms.CHUNK_BYTES),
        ((7, 5), 2, (1, 1), conv_forms.CHUNK_BYTES),
        ((7, 5), 2, (3, 3), 0),
        ((4, 9), 1, (3, 3), conv_forms.CHUNK_BYTES),
        ((4, 9), 2, (7, 5), 0),
        ((4, 9), 3, (3, 3), conv_forms.CHUNK_BYTES),
    ],
)
def test_gradients_are_autodiffs(size, stride, kernel, chunk_bytes, monkeypatch):
    """All examples of the kernel's gradient at once, and one at a time (0 bytes)."""
    monkeypatch.setattr(conv_forms, "CHUNK_BYTES", chunk_bytes)
    assert_is_a_convolution(size, stride, kernel)


@pytest.mark.parametrize("size, chunk_bytes", [((8, 8), conv_forms.CHUNK_BYTES), ((7, 6), 0)])
@pytest.mark.parametrize("winograd_channels, features", [(1, 0), (64, 0), (64, 8), (64, 32)])
def test_every_form_for_cpus_is_a_convolution(size, chunk_bytes, winograd_channels, features, monkeypatch):
    """Winograd's, the direct one, two columns at once and four; all images at once, and one at a time."""
    monkeypatch.setattr(conv_forms, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(conv_forms, "FEATURES", features)
    monkeypatch.setattr(conv_forms, "WINOGRAD_CHANNELS", winograd_channels)
    monkeypatch.setattr(conv_forms, "WINOGRAD_GRADIENT_CHANNELS", winograd_channels)
    assert_is_a_convolution(size, 1, (3, 3))


def assert_is_a_convolution(size, stride, kernel):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, *size, 2))
    w = jax.random.normal(keys[1], (*kernel, 2, 4))

    def plain(x, w):
        pads = [(n // 2, n // 2) for n in kernel]
        return lax.conv_general_dilated(x, w, (stride,) * 2, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    y, pullback = jax.vjp(lambda x, w: conv(x, w, stride), x, w)
    y2, pullback2 = jax.vjp(plain, x, w)
    g = jax.random.normal(keys[2], y.shape)
    assert_close((y, pullback(g)), (y2, pullback2(g)))


@pytest.mark.parametrize("shape, dtype, direct", [((3, 3, 64, 64), "float32", 0), ((3, 3, 32, 64), "float32", 1),
    ((3, 3, 64, 64), "bfloat16", 1), ((5, 5, 64, 64), "float32", 1)])  # fmt: skip
def test_which_convolutions_are_winograds(shape, dtype, direct):
    """Of 3x3 pixels and many channels, not in half precision, on CPU, and in training only."""
    x, kernel = jnp.zeros((2, 8, 8, shape[2]), dtype), jnp.zeros(shape, dtype)

    def forward(x, kernel):
        return conv(x, kernel, 1)

    def convolutions(function):
        return jax.jit(function).lower(x, kernel).as_text().count("stablehlo.convolution")

    assert convolutions(lambda x, kernel: jax.vjp(forward, x, kernel)[0]) == direct
    assert convolutions(forward) == 1


def test_a_network_is_cut_at_the_same_places_on_every_platform(monkeypatch):
    """Operations are counted in the direct form."""
    monkeypatch.setattr(conv_forms, "_training_conv", None)
    unit_flops.__wrapped__(ConvBlock(64, 1, 3), (8, 8, 64))
    with pytest.raises(TypeError, match="NoneType"):
        jax.vjp(lambda x: conv(x, jnp.zeros((3, 3, 2, 2)), 1), jnp.zeros((1, 4, 4, 2)))


def test_weights_are_drawn_in_their_shape():
    key, shape = jax.random.key(3), (3, 3, 5, 7)
    assert (layers.he_normal(key, shape) == jax.random.normal(key, shape) * math.sqrt(2 / 45)).all()


def test_a_winograd_convolution_is_as_exact_as_the_direct_one():
    """float32, of 256 channels; both errors against float64."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (2, 8, 8, 256)), jax.random.normal(keys[1], (3, 3, 256, 64))
    x32, kernel32 = x.astype(jnp.float32), kernel.astype(jnp.float32)
    exact = conv_forms.direct(x32.astype(x.dtype), kernel32.astype(x.dtype), 1)

    def error(y):
        assert y.dtype == jnp.float32
        return float(jnp.abs(y.astype(exact.dtype) - exact).max() / jnp.abs(exact).max())

    assert error(winograd.convolution(x32, kernel32, 1)) < 4 * max(error(conv_forms.direct(x32, kernel32, 1)), 2**-24)


def test_a_constant_channel_stays_finite():
    """One-pass variance may come out below zero."""
    x = jnp.full((8, 4, 4, 1), 1e4 + 0.1, jnp.float32)
    y, stats = layers.STANDARDISE.apply({}, layers.init_stats(1), x, Mode(train=True))
    assert np.isfinite(y).all()
    assert float(stats["var"][0]) >= 0


def test_the_gradient_of_batch_norm_is_autodiffs():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 3, 3, 5))
    params = {"scale": jnp.arange(1.0, 6.0), "bias": jnp.arange(5.0)}

    def ours(params, x):
        return (layers.batch_norm(params, layers.init_stats(5), x, Mode(train=True))[0] ** 3).sum()

    def plain(params, x):
        xhat = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + layers.BATCH_NORM_EPSILON)
        return ((xhat * params["scale"] + params["bias"]) ** 3).sum()

    with jax.numpy_rank_promotion("allow"):
        assert_close(jax.grad(ours, (0, 1))(params, x), jax.grad(plain, (0, 1))(params, x))


def test_batch_norm_keeps_one_array_for_the_backward_pass():
    x = jnp.zeros((8, 3, 3, 5))
    params, stats = layers.init_batch_norm(5)
    pullback = jax.vjp(lambda x: layers.batch_norm(params, stats, x, Mode(train=True))[0], x)[1]
    assert [leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size] == [x.shape]


def test_batch_norm_over_a_mesh_sees_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 2)) * jnp.arange(1.0, 9.0)[:, None, None, None]
    params, stats = layers.init_batch_norm(2)

    def loss(x, axes):
        y, new = layers.batch_norm(params, stats, x, Mode(train=True, axes=axes))
        return (y**3).sum(), new

    def gradient(x, axes):
        (_, new), grad = jax.value_and_grad(loss, has_aux=True)(x, axes)
        return grad, new

    mesh = make_mesh(2, 2)
    sharded = jax.shard_map(
        lambda x: gradient(x, ALL_AXES), mesh=mesh, in_specs=EXAMPLES, out_specs=(EXAMPLES, P()), check_vma=False
    )
    assert_close(jax.device_get(jax.jit(sharded)(x)), jax.device_get(gradient(x, ())))
