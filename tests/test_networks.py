"""The networks of the papers: sizes, shapes, how blocks begin, dropout, what is refused."""

import itertools

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


def basic_size(n: int, stem: int, width: int, *, preact: bool) -> int:
    """Parameters of a CIFAR network of 3n basic blocks, 3 channels in and 10 classes out, counted layer by layer.

    A post-activation block normalises what its convolutions return and has no parameters in its shortcut; a
    pre-activation block normalises what they are given, and projects where the number of channels changes.
    """
    w = [stem, width, 2 * width, 4 * width]
    size = 9 * 3 * stem + (w[3] + 1) * 10
    for before, features in itertools.pairwise(w):
        size += 9 * before * features + (2 * n - 1) * 9 * features**2  # convolutions
        size += 2 * ((before if preact else features) + (2 * n - 1) * features)  # scales and biases
        size += before * features if preact and before != features else 0
    return size + 2 * (w[3] if preact else stem)  # the norm of the head or of the stem


def bottleneck_size(n: int, width: int) -> tuple[int, int]:
    """Parameters of a CIFAR pre-activation network of 3n bottlenecks: convolutions and classifier, batch norms."""
    weights, norms, before = 9 * 3 * width, 0, width
    for f in (width, 2 * width, 4 * width):
        weights += before * f + 4 * f * f * (n - 1)  # 1x1, from the block's input
        weights += n * (9 * f * f + 4 * f * f)  # 3x3, and 1x1 to the block's output
        weights += before * 4 * f  # projection of the first block
        norms += 2 * (before + (n - 1) * 4 * f + n * 2 * f)
        before = 4 * f
    return weights + (before + 1) * 10, norms + 2 * before


def in_millions(size: int, published: str) -> str:
    return f"{size / 1e6:.{len(published.partition('.')[2])}f}"


@pytest.mark.parametrize(
    "depth, size, millions",
    [
        (20, 269_722, "0.27"),
        (32, 464_154, "0.46"),
        (44, 658_586, "0.66"),
        (56, 853_018, "0.85"),
        (110, 1_727_962, "1.7"),
        (1202, 19_421_274, "19.4"),
    ],
)
def test_sizes_of_cifar_resnets(depth, size, millions):
    """arXiv:1512.03385, table 6."""
    assert chain_size(cifar_resnet(depth)) == size == basic_size((depth - 2) // 6, 16, 16, preact=False)
    assert in_millions(size, millions) == millions


@pytest.mark.parametrize("depth, size", [(110, 1_730_522), (164, 1_703_258), (1001, 10_327_706)])
def test_sizes_of_preact_resnets(depth, size):
    assert chain_size(cifar_preact(depth)) == size
    if depth == 110:
        assert size == basic_size(18, 16, 16, preact=True)
    else:
        assert size == sum(bottleneck_size((depth - 2) // 9, 16))


def test_published_sizes_of_preact_resnets():
    """arXiv:1603.05027, table 4: 1.7, 1.7 and 10.2 million.

    With everything that is trained ResNet-1001 has 10.3 million, as in other implementations; 10.2 is what it has
    without the scales and biases of its batch norms, so the paper seems not to count them.
    """
    assert in_millions(basic_size(18, 16, 16, preact=True), "1.7") == "1.7"
    assert in_millions(sum(bottleneck_size(18, 16)), "1.7") == "1.7"
    weights, norms = bottleneck_size(111, 16)
    assert in_millions(weights, "10.2") == "10.2"
    assert in_millions(weights + norms, "10.2") == "10.3"


@pytest.mark.parametrize(
    "depth, widen, size, millions",
    [
        (16, 4, 2_748_890, "2.7"),
        (28, 10, 36_479_194, "36.5"),
        (40, 4, 8_949_210, "8.9"),
        (40, 10, 55_841_754, "55.8"),
    ],
)
def test_sizes_of_wide_resnets(depth, widen, size, millions):
    """arXiv:1605.07146, tables 4 and 5 and the authors' repository (szagoruyko/wide-residual-networks)."""
    assert chain_size(wrn(depth, widen)) == size == basic_size((depth - 4) // 6, 16, 16 * widen, preact=True)
    assert in_millions(size, millions) == millions


@pytest.mark.parametrize(
    "depth, size", [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_sizes_of_imagenet_resnets(depth, size):
    """The `num_params` that torchvision publishes with its weights."""
    assert chain_size(make_chain(imagenet_resnet(depth=depth, classes=1000), IMAGENET)) == size


# ---------------------------------------------------------------- shapes and repeats


@pytest.mark.parametrize(
    "build, counts",
    [
        (lambda: cifar_resnet(1202), [1, 200, 1, 199, 1, 199, 1]),
        (lambda: cifar_preact(1001), [1, 1, 110, 1, 110, 1, 110, 1]),
        (lambda: wrn(28, 10), [1, 1, 3, 1, 3, 1, 3, 1]),
        (lambda: make_chain(imagenet_resnet(depth=152, classes=1000), IMAGENET), [1, 1, 1, 2, 1, 7, 1, 35, 1, 2, 1]),
    ],
)
def test_depth_adds_no_repeats(build, counts):
    """Programs are as long as there are repeats."""
    assert [repeat.count for repeat in build().repeats] == counts


def test_shapes_of_imagenet_resnets():
    deep, shallow = (make_chain(imagenet_resnet(depth=depth, classes=7), IMAGENET) for depth in (50, 18))
    assert deep.shapes[:4] == (IMAGENET, (112, 112, 64), (56, 56, 64), (56, 56, 256))
    assert deep.shapes[-2:] == ((7, 7, 2048), (7,))
    assert shallow.shapes[:4] == (IMAGENET, (112, 112, 64), (56, 56, 64), (56, 56, 64))
    assert shallow.shapes[-2:] == ((7, 7, 512), (7,))


def test_shapes_of_preact_resnets():
    assert cifar_preact(164).shapes[1:3] == ((32, 32, 16), (32, 32, 64))
    assert cifar_preact(164).shapes[-2] == (8, 8, 256)
    assert wrn(16, 4).shapes[1:3] == ((32, 32, 16), (32, 32, 64))
    assert make_chain(preact_resnet(depth=8, classes=3, width=5), (9, 7, 2)).shapes[-2:] == ((3, 2, 20), (3,))


def parts_with_a_shortcut(network: Chain) -> list[int]:
    params, _ = jax.eval_shape(lambda key: chain.init(network, key), jax.random.key(0))
    return [repeat.first for repeat, tree in zip(network.repeats, params, strict=True) if "shortcut" in tree]


def test_only_changes_of_shape_are_projected():
    assert parts_with_a_shortcut(cifar_preact(20)) == [4, 7]  # the first group keeps the stem's channels
    assert parts_with_a_shortcut(wrn(28, 10)) == [1, 5, 9]
    assert parts_with_a_shortcut(make_chain(imagenet_resnet(depth=34, classes=10), IMAGENET)) == [5, 9, 15]
    assert parts_with_a_shortcut(make_chain(imagenet_resnet(depth=50, classes=10), IMAGENET)) == [2, 5, 9, 15]
    halved = make_chain([PreActivationBlock("basic", 4, 2, 0.0)], (8, 8, 4))  # of as many channels as before
    assert parts_with_a_shortcut(halved) == [0]


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


def test_zero_init_can_be_left_out():
    for _, (tree,), _ in initialised(18, zero_init=False):
        assert all(np.all(part["norm"]["scale"] == 1) for part in tree.values())


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


@pytest.mark.parametrize("train, with_keys, rate", [(False, True, RATE), (True, False, RATE), (True, True, 0.0)])
def test_nothing_is_dropped(x, keys, train, with_keys, rate):
    """Not in evaluation, not where nothing is random, not at rate 0."""
    network, params, stats = mask_chain(rate=rate)
    y, _ = chain.apply(network, params, stats, x, Mode(train, keys=keys if with_keys else None))
    assert_close(y, x + 1)


def test_the_mask_belongs_to_the_example(x, keys):
    """The same in whatever batch, on whatever device, and for another input; another for every example."""
    whole, some = masks(x, keys), jnp.array([6, 1, 3])
    assert_close(masks(x[some], keys[some]), whole[some])
    assert_close(masks(jnp.cos(x), keys), whole)
    assert not any(np.allclose(whole[i], whole[j]) for i in range(8) for j in range(i))


def test_the_mask_belongs_to_the_position_in_the_network(x, keys):
    """Each unit of a repeat has its own, the one it has where a cut makes it the first of a stage."""
    first, second = masks(x, keys, offset=5), masks(x, keys, offset=6)
    assert not np.allclose(first, second)
    assert_close(masks(x, keys, count=2, offset=5), first + second)


def test_wide_resnets_drop_out_in_every_block():
    network = make_chain(wide_resnet(depth=16, widen=1, classes=10, dropout=RATE), (8, 8, 3))
    blocks = [(16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)]
    assert list(network.units[1:-1]) == [
        PreActivationBlock("basic", features, stride, RATE) for features, stride in blocks
    ]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: preact_resnet(depth=2, classes=10), r"model.depth=2: expected 6n\+2 with n >= 1; the nearest is 8"),
        (lambda: preact_resnet(depth=111, classes=10), r"model.depth=111: expected 6n\+2 .* nearest is 110"),
        (lambda: preact_resnet(depth=1000, classes=10), r"model.depth=1000: expected 9n\+2 .* nearest is 1001"),
        (lambda: preact_resnet(depth=20, classes=10, width=0), "model.width=0 with 10 classes"),
        (lambda: wide_resnet(depth=27, widen=10, classes=10), r"model.depth=27: expected 6n\+4 .* nearest is 28"),
        (lambda: wide_resnet(depth=4, widen=10, classes=10), r"model.depth=4: expected 6n\+4 .* nearest is 10"),
        (lambda: wide_resnet(depth=28, widen=0, classes=10), "model.widen=0 with 10 classes"),
        (lambda: wide_resnet(depth=28, widen=1, classes=0), "model.widen=1 with 0 classes"),
        (lambda: wide_resnet(depth=28, widen=1, classes=10, dropout=1.0), "model.dropout=1.0: expected"),
        (lambda: wide_resnet(depth=28, widen=1, classes=10, dropout=-0.1), "model.dropout=-0.1: expected"),
        (lambda: imagenet_resnet(depth=56, classes=10), "model.depth=56: expected one of 18, 34, 50, 101, 152"),
        (lambda: imagenet_resnet(depth=50, classes=10, width=0), "model.width=0 with 10 classes"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "units, size, message",
    [
        (imagenet_resnet(depth=18, classes=10), 1, r"unit 0 \(conv7-64/2\).*1x1 cannot be taken at stride 2"),
        (imagenet_resnet(depth=18, classes=10), 2, r"unit 1 \(max_pool/2\).*1x1 cannot be taken at stride 2"),
        (imagenet_resnet(depth=18, classes=10), 16, r"unit 8 \(basic-512/2\).*1x1 cannot be taken at stride 2"),
        (imagenet_resnet(depth=50, classes=10), 16, r"unit 15 \(bottleneck-512/2\).*1x1 cannot be taken at stride 2"),
        (wide_resnet(depth=10, widen=1, classes=10), 2, r"unit 3 \(preact-basic-64/2\).*1x1 cannot be taken"),
        (preact_resnet(depth=164, classes=10), 2, r"unit 37 \(preact-bottleneck-64/2\).*1x1 cannot be taken"),
    ],
)
def test_an_image_too_small_is_refused(units, size, message):
    with pytest.raises(ValueError, match=message):
        make_chain(units, (size, size, 3))


def test_the_smallest_images_that_fit():
    assert make_chain(imagenet_resnet(depth=18, classes=10), (17, 17, 3)).shapes[-2] == (1, 1, 512)
    assert make_chain(wide_resnet(depth=10, widen=1, classes=10), (3, 3, 3)).shapes[-2] == (1, 1, 64)
