"""Ways to train one network, by `config.method`; each is a file of this folder.

A method's file has

    make_step(network, config, mesh, recipe) -> step        step: (state, batch) -> (state, figures), the state donated

and, if it keeps anything of its own between steps, what `TrainState.carry` is to hold:

    init_carry(network, config, recipe, key) -> carry       under `shard_map`: a device's own slice
    carry_specs(config) -> partition specs of it            what differs by stage leads with the K stages

All share chain, cut, data, optimiser (`recipe`), evaluation, checkpoints and the loop.
"""

import importlib
from types import ModuleType
from typing import NamedTuple


class Entry(NamedTuple):
    """What the configuration must know of a method.

    staged: each device along 'stage' holds its K/S stages, K devices unless told otherwise; otherwise every device
        holds the whole network.
    devices: along 'stage' where nothing is said: "stages" (K) or "one".
    aux_net: what an AuxNet is for: "inputs" of the stages (and tails), "tails" alone, or "" where there is none.  With
        "inputs" interfaces are standardised (`Config.standardised`).
    """

    staged: bool
    devices: str = "stages"
    aux_net: str = ""


METHODS = {
    "layer_parallel": Entry(staged=True, aux_net="inputs"),
    "coarse_adjoint": Entry(staged=True, aux_net="tails"),
    "serial": Entry(staged=False, devices="one"),
    "data_parallel": Entry(staged=False),
    "pipeline": Entry(staged=True),
    "delayed": Entry(staged=True),
    "local": Entry(staged=True),
}


def module(method: str) -> ModuleType:
    """The file of a method; not imported before it is asked for, as it reads the configuration."""
    place = {"layer_parallel": "layer_parallel.step", "serial": "backprop", "data_parallel": "backprop"}.get(
        method, method
    )
    return importlib.import_module(f"lpjax.methods.{place}")
