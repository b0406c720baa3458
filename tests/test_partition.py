"""Cuts: best balance by brute force, costs from shapes, refusals."""

import itertools

import numpy as np
import pytest

from lpjax.models.resnet import resnet
from lpjax.network.partition import even_cuts, split
from lpjax.nn.chain import make_chain
from lpjax.nn.count import chain_size
from lpjax.nn.layers import STANDARDISE

NETWORK = make_chain(resnet(depth=20, width=16, classes=10), (32, 32, 3))


def dearest(costs, cuts):
    bounds = (0, *cuts, len(costs))
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("num_stages", [2, 3, 9])
def test_even_cuts_are_optimal(num_stages):
    rng = np.random.default_rng(num_stages)
    for _ in range(5):
        costs = rng.uniform(1, 20, size=9).tolist()
        best = min(dearest(costs, cuts) for cuts in itertools.combinations(range(1, 9), num_stages - 1))
        cuts = even_cuts(costs, num_stages)
        assert len(cuts) == num_stages - 1
        assert dearest(costs, cuts) == best


def test_stages_compose_to_the_network():
    stages = split(NETWORK, num_stages=4)
    units = [unit for stage in stages for unit in stage.units if unit != STANDARDISE]
    assert tuple(units) == NETWORK.units
    assert [stage.offset for stage in stages] == np.cumsum([0, *(len(s.units) - 1 for s in stages[:-1])]).tolist()
    assert all(a.out_shape == b.in_shape for a, b in itertools.pairwise(stages))
    assert [stage.units[-1] == STANDARDISE for stage in stages] == [True, True, True, False]
    assert sum(map(chain_size, stages)) == chain_size(NETWORK)


@pytest.mark.parametrize("cuts", [(3,), (0, 4), (4, 11), (4, 4)])
def test_bad_cuts(cuts):
    with pytest.raises(ValueError, match="expected num_stages - 1 = 2 increasing positions between 1 and 10"):
        split(NETWORK, num_stages=3, cuts=cuts)
