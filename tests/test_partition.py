"""Cuts: best balance by brute force, costs from shapes, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.models.resnet import ConvBlock, resnet
from lpjax.network.partition import even_cuts, split
from lpjax.nn.chain import Mode, apply, init, make_chain
from lpjax.nn.count import activation_bytes, chain_flops, chain_size, unit_flops
from lpjax.nn.layers import STANDARDISE

NETWORK = make_chain(resnet(depth=20, width=16, classes=10), (32, 32, 3))


def dearest(costs, cuts):
    bounds = (0, *cuts, len(costs))
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5, 9])
def test_even_cuts_are_optimal(num_stages):
    rng = np.random.default_rng(num_stages)
    for _ in range(5):
        costs = rng.uniform(1, 20, size=9).tolist()
        best = min(dearest(costs, cuts) for cuts in itertools.combinations(range(1, 9), num_stages - 1))
        cuts = even_cuts(costs, num_stages)
        assert len(cuts) == num_stages - 1
        assert dearest(costs, cuts) == best


def test_flops_of_a_convolution():
    """2 multiply-adds' worth a kernel weight and output, fewer at the border; batch norm and ReLU on top."""
    measured = unit_flops(ConvBlock(16, 1, 3), (32, 32, 8))
    inner, whole = 30 * 30, 32 * 32
    assert 2 * inner * 9 * 8 * 16 < measured < 2 * whole * 9 * 8 * 16 + 20 * whole * 16


def test_stages_compose_to_the_network():
    stages = split(NETWORK, num_stages=4)
    units = [unit for stage in stages for unit in stage.units if unit != STANDARDISE]
    assert tuple(units) == NETWORK.units
    assert [stage.offset for stage in stages] == np.cumsum([0, *(len(s.units) - 1 for s in stages[:-1])]).tolist()
    assert all(a.out_shape == b.in_shape for a, b in itertools.pairwise(stages))
    assert [stage.units[-1] == STANDARDISE for stage in stages] == [True, True, True, False]
    assert sum(map(chain_size, stages)) == chain_size(NETWORK)


def test_even_stages_cost_about_the_same():
    flops = [chain_flops(stage) for stage in split(NETWORK, num_stages=3)]
    assert max(flops) < 1.25 * sum(flops) / 3


def test_explicit_cuts_and_no_standardisation():
    stages = split(NETWORK, num_stages=3, cuts=(2, 9), standardise=False)
    assert [len(stage.units) for stage in stages] == [2, 7, 2]
    assert not any(STANDARDISE in stage.units for stage in stages)


@pytest.mark.parametrize("num_stages", [0, 12])
def test_too_many_stages(num_stages):
    with pytest.raises(ValueError, match=f"num_stages={num_stages}: the network is a chain of 11 units"):
        split(NETWORK, num_stages=num_stages)


@pytest.mark.parametrize("cuts", [(3,), (5, 3), (0, 4), (4, 11), (4, 4)])
def test_bad_cuts(cuts):
    with pytest.raises(ValueError, match="expected num_stages - 1 = 2 increasing positions between 1 and 10"):
        split(NETWORK, num_stages=3, cuts=cuts)


def test_activation_bytes_of_a_convolution():
    """conv, batch norm, ReLU: kept are the input and its statistics' residuals, never the parameters; twice the batch
    is twice the memory."""
    chain_ = make_chain([ConvBlock(16, 1, 3)], (32, 32, 8))
    image, output = 32 * 32 * 8 * 4, 32 * 32 * 16 * 4
    assert image + output < activation_bytes(chain_, 1) < image + 4 * output
    fixed = 2 * activation_bytes(chain_, 4) - activation_bytes(chain_, 8)
    assert 0 <= fixed < 16 * 4 * 20, "a few vectors of channels"


def test_activation_bytes_are_about_what_xla_needs():
    compiled = jax.jit(lambda params, stats, x: jax.grad(
        lambda p: apply(NETWORK, p, stats, x, Mode(train=True))[0].sum())(params)
    ).lower(*init(NETWORK, jax.random.key(0)), jnp.zeros((32, 32, 32, 3))).compile()  # fmt: skip
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert 0.5 * needed < activation_bytes(NETWORK, 32) < 2 * needed
