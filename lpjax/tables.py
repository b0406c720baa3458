"""What a person sees before training: devices, the cut of the network, its AuxNet, memory."""

import importlib.metadata
import platform

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from lpjax import flow
from lpjax.aux_net import aux_share
from lpjax.chain import Chain
from lpjax.config import Config
from lpjax.exchange import Exchange
from lpjax.methods import METHODS, delayed
from lpjax.network import Network
from lpjax.partition import activation_bytes, chain_flops, chain_size
from lpjax.structure import beside, units
from lpjax.train_state import multiplier_bytes


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    packages = ("lpjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def device_name() -> str:
    """The devices in words, such as "4 x cpu"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def device_table(mesh: Mesh) -> Table:
    """Which device is where on the mesh."""
    table = Table(title="devices", title_justify="left")
    for column in ("stage", "data", "device"):
        table.add_column(column)
    for (s, d), device in _positions(mesh):
        table.add_row(str(s), str(d), f"{device} ({device.device_kind})")
    return table


def _positions(mesh: Mesh) -> list[tuple[tuple[int, int], jax.Device]]:
    return [((s, d), device) for s, row in enumerate(mesh.devices) for d, device in enumerate(row)]


def cut_table(network: Network, config: Config) -> Table:
    """Stage, units, parameters, forward GFLOP of a step, what it keeps for its backward pass; and the AuxNet's pieces.

    FLOPs and bytes are for the examples of one stage column, batch_size / mesh.data; waste of packing in the caption.
    """
    column = config.batch_size // config.mesh.data
    table = Table(
        title=f"cut into {network.num_stages} stages, {column} examples a column",
        title_justify="left",
        caption=f"padding of the packed rows: {network.params.waste:.1%}",
        caption_justify="left",
    )
    table.add_column("stage")
    table.add_column("units", overflow="fold")
    for heading in ("input", "parameters", "GFLOP forward", "activations MB"):
        table.add_column(heading, justify="right")

    def row(name: str, chain: Chain) -> None:
        table.add_row(
            name,
            units(chain),
            "x".join(map(str, chain.in_shape)),
            f"{chain_size(chain):,}",
            f"{chain_flops(chain) * column / 1e9:.3f}",
            f"{activation_bytes(chain, column) / 1e6:,.1f}",
        )

    for k, stage in enumerate(network.stages):
        row(str(k), stage)
    if METHODS[config.method].aux_net:
        table.add_section()
        for j, piece in enumerate(network.aux_net):
            row(f"aux {j}", piece)
    return table


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
        slots, packet = network.num_stages // S, width * column * flow.length(network)
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


def print_tables(console: Console, network: Network, config: Config, mesh: Mesh, num_examples: int) -> None:
    """The tables above, the AuxNet's share, and the size of stored multipliers."""
    console.print(device_table(mesh))
    console.print(cut_table(network, config))
    if METHODS[config.method].aux_net == "inputs" and network.aux_net:
        share = aux_share(network.stages, network.aux_net)
        console.print(f"AuxNet: {share:.1%} of the network's forward cost, {share / mesh.shape['stage']:.1%} a device")
        stored = multiplier_bytes(config, network, num_examples)
        console.print(f"multiplier policy {config.multiplier}: {stored / 1e6:,.2f} MB stored over the mesh")
    memory = device_bytes(network, config, num_examples)
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in memory.items() if size)
    console.print(f"estimated memory of a device: {sum(memory.values()) / 1e6:,.1f} MB ({parts})")
