"""Estimated memory of a device."""

import jax.numpy as jnp

from lpjax.config.schema import Config
from lpjax.methods import METHODS, delayed, moving
from lpjax.network.network import Network
from lpjax.nn.count import activation_bytes, chain_size
from lpjax.parallel.exchange import Exchange
from lpjax.state.train_state import multiplier_bytes
from lpjax.training.structure import beside


def device_bytes(network: Network, config: Config, num_examples: int) -> dict[str, int]:
    """Estimated memory of the fullest device in a step, in bytes, without compiling anything.

    parameters: rows of its stages and the AuxNet, with gradients and optimiser state (SGD's momentum, or Adam's two).
    activations: what the backward pass keeps, of its fullest stage (they run one after another) with the coarse tail
    behind it, and of the AuxNet; see `partition.activation_bytes`.  packets: what the exchanges send and receive.
    multipliers: its share of the stored ones.  Kept inputs and weights of `delayed` count as packets and parameters.
    """
    S, D = config.mesh_shape
    width = jnp.dtype(jnp.result_type(float)).itemsize
    batch = config.batch_size // (S * D)
    copies = 4 if config.optimizer.name == "adamw" else 3
    rows = sum(network.params.lengths.values()) * network.num_stages
    if not config.staged:
        whole = sum(activation_bytes(stage, batch) for stage in network.stages)
        return {"parameters": copies * rows * width, "activations": whole, "packets": 0, "multipliers": 0}
    column, pieces = config.batch_size // D, network.aux_net
    stages = [activation_bytes(stage, column) for stage in network.stages]
    if METHODS[config.method].aux_net:
        behind = [sum(activation_bytes(chain, column) for chain in chains) for chains in beside(network, config)]
        stages = [own + more for own, more in zip(stages, behind, strict=True)]
    aux_parameters = copies * width * sum(map(chain_size, network.aux_own))
    if config.method != "layer_parallel":
        micro = config.pipeline.micro_batches if config.method == "pipeline" else 1
        kept = stages if micro == 1 else [activation_bytes(stage, column // micro) for stage in network.stages]
        slots, packet = network.num_stages // S, width * column * moving.length(network)
        rings = slots * (max(delayed.staleness(config)) + 1) if config.method == "delayed" else 0
        per_device = [sum(kept[i : i + slots]) for i in range(0, network.num_stages, slots)]
        return {
            "parameters": width * (copies * rows // S + rings * sum(network.params.lengths.values()))
            + (aux_parameters if METHODS[config.method].aux_net else 0),
            "activations": max(per_device if config.method == "pipeline" else kept),
            "packets": packet * (rings + 3 * slots),
            "multipliers": 0,
        }
    aux = [activation_bytes(piece, batch) for piece in pieces]
    exchange = Exchange(network.interfaces, S, config.multiplier in ("per_example", "adjoint"))
    return {
        "parameters": copies * width * (rows // S) + aux_parameters,
        "activations": max(stages) + sum(aux),
        "packets": 2 * width * batch * network.num_stages * (exchange.outward_length + exchange.homeward_length),
        "multipliers": multiplier_bytes(config, network, num_examples)
        // (S * D if config.multiplier == "per_example" else 1),
    }
