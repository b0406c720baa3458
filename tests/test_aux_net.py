"""The AuxNet's shapes, its adjoint, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close

from lpjax.config.schema import AuxConfig
from lpjax.models.resnet import Classifier, resnet
from lpjax.network import aux_net
from lpjax.network.coarse_tails import as_tails
from lpjax.network.grid_block import GridBlock
from lpjax.network.partition import split
from lpjax.nn import chain, layers
from lpjax.nn.chain import Mode, make_chain
from lpjax.nn.layers import STANDARDISE

NETWORK = make_chain(resnet(depth=20, width=8, classes=10), (16, 16, 3))


@pytest.mark.parametrize("num_stages, blocks, width", [(2, 0, 1.0), (4, 2, 0.5), (11, 1, 1.5)])
def test_pieces_map_interface_to_interface(num_stages, blocks, width):
    stages = split(NETWORK, num_stages=num_stages)
    pieces = aux_net.make_aux_net(stages, AuxConfig(blocks_per_stage=blocks, width=width))
    assert [(p.in_shape, p.out_shape) for p in pieces] == [(s.in_shape, s.out_shape) for s in stages]
    assert all(piece.units[-1] == STANDARDISE for piece in pieces[:-1])
    assert all(sum(unit.name.startswith("block") for unit in piece.units) == blocks for piece in pieces)


def test_the_widest_auxnet_of_a_share():
    stages = split(NETWORK, num_stages=2)

    def share(sixteenths):
        pieces = aux_net.make_aux_net(stages, AuxConfig(width=sixteenths / 16))
        return aux_net.aux_share(stages, pieces)

    def chosen(bound):
        pieces = aux_net.make_aux_net(stages, AuxConfig(share=bound))
        return aux_net.aux_share(stages, pieces)

    assert 0 < share(8) < share(16) < 1
    assert chosen(1.0) == share(16), "no wider than the stages"
    assert chosen(share(8)) == share(8)
    assert chosen(share(8) - 1e-6) < share(8)
    with pytest.raises(ValueError, match=r"aux.share=0.0001: the narrowest AuxNet of 1 blocks a stage has 0\.0"):
        chosen(1e-4)


@pytest.mark.parametrize(
    ("j", "length", "pieces"),
    [(1, None, [1, 2, 3, 4]), (1, 2, [1, 2, 4]), (1, 0, [4]), (3, 5, [3, 4]), (4, 1, [4]), (5, None, []), (5, 1, [])],
)
def test_the_pieces_of_a_tail(j, length, pieces):
    assert aux_net.tail(5, j, length) == pieces


def test_gradient_of_a_shift_is_the_adjoint(x64):
    """Of the head's loss at lambda_j, by the tail alone."""
    stages = split(NETWORK, num_stages=4)
    pieces = aux_net.make_aux_net(stages, AuxConfig())
    params, stats = aux_net.init(pieces, jax.random.key(0))
    x, mode = jax.random.normal(jax.random.key(1), (4, 16, 16, 3)), Mode(train=True)
    no_shift = tuple(jnp.zeros((4, *piece.out_shape)) for piece in pieces[:-1])

    def head(shifts):
        lam, logits, _ = aux_net.apply(pieces, params, stats, x, shifts, mode)
        return (logits**2).sum(), lam

    adjoints, lam = jax.jit(jax.grad(head, has_aux=True))(no_shift)
    for j in (1, 2, 3):

        def tail(lam_j, j=j):
            return (aux_net.tail_logits(pieces, params, stats, j, lam_j, mode, None) ** 2).sum()

        assert_close(adjoints[j - 1], jax.jit(jax.grad(tail))(lam[j - 1]))


def grid_pieces(num_stages, grid, width=1.0):
    stages = split(NETWORK, num_stages=num_stages, standardise=False)
    return stages, aux_net.make_aux_net(stages, AuxConfig(width=width, grid=grid))


@pytest.mark.parametrize("grid, side", [(2, 2), (5, 4)])
def test_on_a_grid_pieces_map_interface_to_interface_and_tails_stay_on_it(grid, side):
    stages, pieces = grid_pieces(4, grid)
    assert [(p.in_shape, p.out_shape) for p in pieces] == [(s.in_shape, s.out_shape) for s in stages]
    tails = as_tails(pieces, grid)
    assert max(size for tail in tails[1:] for shape in tail.shapes for size in shape[:2] if len(shape) == 3) == side
    assert aux_net.aux_share(stages[2:], tails[2:]) <= aux_net.aux_share(stages[2:], pieces[2:])
    assert as_tails(pieces, None) == pieces


def test_a_tail_on_the_grid_is_the_auxnet_restricted_to_it(x64):
    """On maps that are constant over the windows the piece itself gives what the tail does, spread over them."""
    _, pieces = grid_pieces(3, 4)
    tails = as_tails(pieces, 4)
    params, stats = aux_net.init(pieces, jax.random.key(0))
    small = jax.random.normal(jax.random.key(1), (4, *tails[1].in_shape))
    large = layers.spread(small, pieces[1].in_shape)
    assert large.shape[1:] == pieces[1].in_shape
    out, _ = chain.apply(pieces[1], params[1], stats[1], large, Mode(train=True))
    small_out, _ = chain.apply(tails[1], params[1], stats[1], small, Mode(train=True))
    assert out.shape[1:] == pieces[1].out_shape != small_out.shape[1:]
    assert_close(out, layers.spread(small_out, pieces[1].out_shape))
    whole = aux_net.tail_logits(tails, params, stats, 1, large, Mode(train=True), None)
    assert_close(whole, aux_net.tail_logits(tails, params, stats, 1, small, Mode(train=True), None))


def test_a_grid_block_without_blocks_is_one_convolution(x64):
    """relu(S x + U C R x), each of them by hand; of fewer channels inside, another convolution follows."""
    unit = GridBlock(features=6, inner=6, size=(8, 8), grid=4, blocks=0)
    params, stats = unit.init(jax.random.key(0), (8, 8, 4))
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(3, 3, 4, 6), (6,), (6,)]
    x = jax.random.normal(jax.random.key(1), (5, 8, 8, 4))
    y, _ = layers.conv_norm(params["out"], stats["out"], layers.pooled(x, (4, 4)), Mode(train=True))
    expected = jax.nn.relu(jnp.pad(x, [(0, 0)] * 3 + [(0, 2)]) + y.repeat(2, 1).repeat(2, 2))
    assert_close(unit.apply(params, stats, x, Mode(train=True))[0], expected)
    narrow = GridBlock(features=6, inner=3, size=(8, 8), grid=4, blocks=0)
    assert narrow.init(jax.random.key(0), (8, 8, 4))[0]["out"]["conv"]["kernel"].shape == (1, 1, 3, 6)


ASKED = []


def first_or_last(stage, *, blocks, width, grid):
    """A piece of one unit of the stage."""
    ASKED.append((blocks, width, grid))
    return [stage.units[0]] if len(stage.out_shape) == 3 else [stage.units[-1]]


def head_alone(stage, **_):
    """A piece that maps everything to logits."""
    return [Classifier(10)]


def test_a_function_of_ones_own():
    stages = split(NETWORK, num_stages=2, cuts=(3,))
    ASKED.clear()
    config = AuxConfig(f"{__name__}:first_or_last", blocks_per_stage=2, width=0.3)
    pieces = aux_net.make_aux_net(stages, config)
    assert ASKED == [(2, 0.3, None)] * 2
    assert [unit.name for unit in pieces[0].units] == ["conv3-8", "standardise"]
    with pytest.raises(ValueError, match=r"beside stage 0 maps \(16, 16, 3\) to \(10,\): expected \(16, 16, 8\)"):
        aux_net.make_aux_net(stages, AuxConfig(f"{__name__}:head_alone"))
