"""structure.json says what the network is cut into."""

import json

import pytest
from helpers import small_config
from lpjax.training.structure import beside, describe, units

from lpjax.data import SOURCES
from lpjax.methods.local import classifiers
from lpjax.nn.count import chain_flops, chain_size
from lpjax.training import run as runs


def built(**fields):
    config = small_config(**fields)
    return runs.build_network(config, SOURCES["digits"].describe(config.data)), config


def test_stages_and_pieces_are_those_of_the_network():
    network, config = built(mesh__stage=2, mesh__data=2)
    found = json.loads(json.dumps(describe(network, config)))
    assert (found["mesh"], found["examples"], found["cuts"]) == ([2, 2], 8, list(network.cuts))
    for rows, chains in ((found["stages"], network.stages), (found["aux"], network.aux_net)):
        assert [row["units"] for row in rows] == list(map(units, chains))
        assert [row["parameters"] for row in rows] == list(map(chain_size, chains))
        assert [row["flops"] for row in rows] == list(map(chain_flops, chains))
        assert [tuple(row["in_shape"]) for row in rows] == [chain.in_shape for chain in chains]
        assert [row["out_shape"] for row in rows[:-1]] == [row["in_shape"] for row in rows[1:]]
    tails = [sum(map(chain_flops, network.aux_tails[k + 1 :])) for k in range(4)]
    assert [row["beside_flops"] for row in found["stages"]] == tails


@pytest.mark.parametrize(
    "fields, field, value",
    [
        ({"method": "pipeline"}, "micro_batches", 4),
        ({"method": "delayed", "delayed": {"variant": "ddg"}}, "variant", "ddg"),
        ({"method": "layer_parallel", "multiplier": "adjoint"}, "multiplier", "adjoint"),
    ],
)
def test_what_a_method_draws_its_schedule_from(fields, field, value):
    network, config = built(**fields)
    found = describe(network, config)
    assert found[field] == value
    assert bool(found["aux"]) == (config.method == "layer_parallel")
    assert all(row["beside_flops"] == 0 for row in found["stages"])


def test_beside_stages():
    network, config = built(aux__tail=1)
    tails = network.aux_tails
    assert beside(network, config) == [[tails[1], tails[3]], [tails[2], tails[3]], [tails[3]], []]
    network, config = built(method="coarse_adjoint")
    tails = network.aux_tails
    assert beside(network, config) == [
        [tails[1], tails[2], tails[3]],
        [tails[2], tails[3], tails[1]],
        [tails[3], tails[2]],
        [tails[3]],
    ]
    tails_alone = built(method="coarse_adjoint", aux__task_weight=0.0, penalty__aux=0.0)
    assert beside(*tails_alone) == [[tails[1], tails[2], tails[3]], [tails[2], tails[3]], [tails[3]], []]
    head_alone = built(method="coarse_adjoint", penalty__aux=0.0)
    assert beside(*head_alone) == [[tails[1], tails[2], tails[3]], [tails[2], tails[3]], [tails[3]], [tails[3]]]
    network, config = built(method="local")
    assert [units(chain) for (chain,) in beside(network, config)] == list(map(units, classifiers(network, 1).chains))
    flops = [stage["beside_flops"] for stage in describe(network, config)["stages"]]
    assert [own > 0 for own in flops] == [True, True, True, False], "the last stage has the network's own head"
    assert beside(*built(num_stages=1)) == [[]]
