"""The networks of the papers: sizes, shapes, how blocks begin, dropout, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from lpjax.models.preact_resnet import PreActivationBlock, preact_resnet, wide_resnet
from lpjax.models.resnet import imagenet_resnet, resnet
from lpjax.nn import chain
from lpjax.nn.chain import Chain, Mode, make_chain
from lpjax.nn.count import chain_size

pytestmark = pytest.mark.usefixtures("x64")

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


def cifar_resnet(depth: int) -> Chain:
    return make_chain(resnet(depth=depth, width=16, classes=10), CIFAR)


def cifar_preact(depth: int) -> Chain:
    return make_chain(preact_resnet(depth=depth, classes=10), CIFAR)


def wrn(depth: int, widen: int) -> Chain:
    return make_chain(wide_resnet(depth=depth, widen=widen, classes=10), CIFAR)


# ---------------------------------------------------------------- numbers of parameters


@pytest.mark.parametrize(
    "build, size",
    [
        (lambda: cifar_resnet(20), 269_722),  # arXiv:1512.03385, table 6: 0.27 and 1.7 million
        (lambda: cifar_resnet(110), 1_727_962),
        # arXiv:1603.05027, table 4: 1.7, 1.7 and 10.2 million.  With everything that is trained the last one has 10.3
        # million, as in other implementations; 10.2 is what it has without the scales and biases of its batch norms.
        (lambda: cifar_preact(110), 1_730_522),
        (lambda: cifar_preact(164), 1_703_258),
        (lambda: cifar_preact(1001), 10_327_706),
        (lambda: wrn(16, 4), 2_748_890),  # arXiv:1605.07146, tables 4 and 5: 2.7 and 36.5 million
        (lambda: wrn(28, 10), 36_479_194),
        # the `num_params` that torchvision publishes with its weights
        (lambda: make_chain(imagenet_resnet(depth=18, classes=1000), IMAGENET), 11_689_512),
        (lambda: make_chain(imagenet_resnet(depth=50, classes=1000), IMAGENET), 25_557_032),
    ],
)
def test_sizes_are_the_published_ones(build, size):
    assert chain_size(build()) == size


# ---------------------------------------------------------------- how blocks begin


def initialised(depth: int, **options):
    """The units 2 to 5 of a narrow network, blocks with and without a projection, with their parameters."""
    network = make_chain(imagenet_resnet(depth=depth, classes=3, width=4, **options), (32, 32, 3))
    blocks = [network.piece(position, position + 1) for position in range(2, 6)]
    return [(block, *chain.init(block, jax.random.key(0))) for block in blocks]


@pytest.mark.parametrize("depth, last", [(18, "second"), (50, "third")])
def test_zero_init_makes_every_block_its_shortcut(depth, last):
    identities = 0
    for block, params, stats in initialised(depth):
        (tree,) = params
        assert {part for part in tree if not np.any(tree[part]["norm"]["scale"])} == {last}
        if "shortcut" not in tree:
            x = jax.random.uniform(jax.random.key(1), (2, *block.in_shape))  # not below 0: what a ReLU leaves as it is
            assert_close(chain.apply(block, params, stats, x, Mode(train=True))[0], x)
            identities += 1
    assert identities >= 2


# ---------------------------------------------------------------- dropout

RATE = 0.3


def mask_chain(count: int = 1, offset: int = 0, rate: float = RATE):
    """`count` blocks that add their own dropout mask, 0 or 1 / (1 - rate), to their input; with their trees.

    The norm before dropout returns 1 whatever it gets, the convolution after it is the identity.
    """
    network = make_chain([PreActivationBlock("basic", 4, 1, rate)] * count, (16, 16, 4))
    network = Chain(network.units, network.shapes, offset)
    params, stats = chain.init(network, jax.random.key(0))
    second = params[0]["second"]
    second["norm"] = {"scale": jnp.zeros((count, 4)), "bias": jnp.ones((count, 4))}
    second["conv"] = {"kernel": jnp.zeros((count, 3, 3, 4, 4)).at[:, 1, 1].set(jnp.eye(4))}
    return network, params, stats


def masks(x, keys, *, train: bool = True, **kwargs):
    network, params, stats = mask_chain(**kwargs)
    return chain.apply(network, params, stats, x, Mode(train, keys=keys))[0] - x


@pytest.fixture
def x(x64):
    return jax.random.normal(jax.random.key(1), (8, 16, 16, 4))


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(2), 8)


def test_dropout_is_between_the_convolutions_and_keeps_the_mean(x, keys):
    mask = masks(x, keys)
    dropped = np.isclose(mask, 0)
    assert np.all(dropped | np.isclose(mask, 1 / (1 - RATE)))
    deviation = np.sqrt(RATE * (1 - RATE) / mask.size)
    assert abs(dropped.mean() - RATE) < 4 * deviation


def test_the_mask_belongs_to_the_example_and_the_position_in_the_network(x, keys):
    """Each unit of a repeat has its own, the one it has where a cut makes it the first of a stage."""
    first, second = masks(x, keys, offset=5), masks(jnp.cos(x[::-1]), keys[::-1], offset=6)[::-1]
    assert not np.allclose(first, second)
    assert_close(masks(x, keys, count=2, offset=5), first + second)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: resnet(depth=21, width=16, classes=10), r"model.depth=21: expected 6n\+2 .* nearest is 20"),
        (lambda: resnet(depth=8, width=0, classes=10), "model.width=0 with 10 classes"),
        (lambda: preact_resnet(depth=2, classes=10), r"model.depth=2: expected 6n\+2 with n >= 1; the nearest is 8"),
        (lambda: preact_resnet(depth=1000, classes=10), r"model.depth=1000: expected 9n\+2 .* nearest is 1001"),
        (lambda: wide_resnet(depth=27, widen=10, classes=10), r"model.depth=27: expected 6n\+4 .* nearest is 28"),
        (lambda: wide_resnet(depth=28, widen=1, classes=10, dropout=1.0), "model.dropout=1.0: expected"),
        (lambda: imagenet_resnet(depth=56, classes=10), "model.depth=56: expected one of 18, 34, 50, 101, 152"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
