"""structure.json says what the network is cut into."""

import json
from dataclasses import replace

import pytest
from helpers import built

from lpjax.methods import METHODS
from lpjax.methods.local import classifiers
from lpjax.nn.count import chain_flops, chain_size
from lpjax.nn.schedule import Work, from_json
from lpjax.training.summary import describe, item_flops, units


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
    tails = [{"tail": sum(map(chain_flops, network.aux_tails[k + 1 :]))} for k in range(3)]
    assert [row["beside"] for row in found["stages"]] == [*tails, {}]


@pytest.mark.parametrize(
    "fields, settings",
    [
        ({"method": "pipeline"}, {"micro_batches": 4}),
        ({"method": "delayed", "delayed": {"variant": "ddg"}}, {"variant": "ddg"}),
        ({"method": "layer_parallel", "multiplier": "adjoint"}, {"multiplier": "adjoint"}),
    ],
)
def test_what_a_method_says_of_itself(fields, settings):
    network, config = built(**fields)
    (found,) = describe(network, config)["phases"]
    method = METHODS[config.method]
    assert (found["method"], found["title"], found["settings"]) == (config.method, method.title, settings)
    assert found["metrics"] == method.metrics
    assert len(found["schedule"]) == len(method.work(network, config))
    described = describe(network, config)
    assert bool(described["aux"]) == (method.aux_net != "none")
    assert all(row["beside"] == {} for row in described["stages"])


def test_a_schedule_survives_json():
    """Entries, what they wait for and their labels; of their chains the operations are left."""
    network, config = built()
    items = METHODS[config.method].work(network, config)
    rows = from_json(json.loads(json.dumps(describe(network, config)))["phases"][0]["schedule"])
    assert [row.label for row in rows] == [item.label for item in items]
    without = [replace(item, chain=None) if isinstance(item, Work) else item for item in items]
    assert [row.item for row in rows] == without
    assert [row.flops for row in rows] == [item_flops(item) for item in items]


def test_each_phase_has_its_schedule():
    network, config = built(phases={"methods": ["coarse_adjoint", "delayed"], "epochs": [1.0]})
    found = describe(network, config)["phases"]
    assert [phase["method"] for phase in found] == ["coarse_adjoint", "delayed"]
    assert found[0]["schedule"] != found[1]["schedule"]


def chains_beside(network, config):
    """[K], the chains that each stage applies beside its own."""
    found = [[] for _ in network.stages]
    for item in METHODS[config.method].work(network, config):
        if isinstance(item, Work) and item.kind in ("tail", "classifier") and not item.gradients:
            found[item.stage].append(item.chain)
    return found


def test_beside_stages():
    network, config = built(aux__tail=1)
    tails = network.aux_tails
    assert chains_beside(network, config) == [[tails[1], tails[3]], [tails[2], tails[3]], [tails[3]], []]
    network, config = built(method="coarse_adjoint")
    tails = network.aux_tails
    assert chains_beside(network, config) == [
        [tails[1], tails[2], tails[3]],
        [tails[2], tails[3], tails[1]],
        [tails[3], tails[2]],
        [tails[3]],
    ]
    tails_alone = built(method="coarse_adjoint", aux__task_weight=0.0, penalty__aux=0.0)
    assert chains_beside(*tails_alone) == [[tails[1], tails[2], tails[3]], [tails[2], tails[3]], [tails[3]], []]
    head_alone = built(method="coarse_adjoint", penalty__aux=0.0)
    assert chains_beside(*head_alone) == [[tails[1], tails[2], tails[3]], [tails[2], tails[3]], [tails[3]], [tails[3]]]
    network, config = built(method="local")
    own = [chain for chains in chains_beside(network, config) for chain in chains]
    assert own == list(classifiers(network, 1).chains[:-1]), "the last stage has the network's own head"
    assert [list(stage["beside"]) for stage in describe(network, config)["stages"]] == [["classifier"]] * 3 + [[]]
    assert chains_beside(*built(num_stages=1)) == [[]]
