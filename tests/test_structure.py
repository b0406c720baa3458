"""structure.json says what the network is cut into."""

import json
from dataclasses import replace

from helpers import built

from lpjax.methods import METHODS
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


def test_a_schedule_survives_json():
    """Entries, what they wait for and their labels; of their chains the operations are left."""
    network, config = built()
    items = METHODS[config.method].work(network, config)
    rows = from_json(json.loads(json.dumps(describe(network, config)))["phases"][0]["schedule"])
    assert [row.label for row in rows] == [item.label for item in items]
    without = [replace(item, chain=None) if isinstance(item, Work) else item for item in items]
    assert [row.item for row in rows] == without
    assert [row.flops for row in rows] == [item_flops(item) for item in items]
