"""What a person sees before training: devices, the cut of the network, its AuxNet, memory."""

import importlib.metadata
import platform

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from lpjax.aux_net import aux_share
from lpjax.chain import Chain
from lpjax.config import Config
from lpjax.network import Network
from lpjax.partition import activation_values, chain_flops, chain_size
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


def _units(chain: Chain) -> str:
    """Units in short: runs as "n x name"."""
    return ", ".join((f"{run.count} x " if run.count > 1 else "") + run.unit.name for run in chain.runs)


def cut_table(network: Network, config: Config) -> Table:
    """Stage, units, parameters, forward GFLOP of a step, bytes its units hand on in a step; and the AuxNet's pieces.

    FLOPs and bytes are for the examples of one stage column, batch_size / mesh.data; waste of packing in the caption.
    """
    column = config.batch_size // config.mesh.data
    width = jnp.dtype(jnp.result_type(float)).itemsize
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
            _units(chain),
            "x".join(map(str, chain.in_shape)),
            f"{chain_size(chain):,}",
            f"{chain_flops(chain) * column / 1e9:.3f}",
            f"{activation_values(chain) * column * width / 1e6:.2f}",
        )

    for k, stage in enumerate(network.stages):
        row(str(k), stage)
    if config.method == "layer_parallel":
        table.add_section()
        for j, piece in enumerate(network.aux_net):
            row(f"aux {j}", piece)
    return table


def print_tables(console: Console, network: Network, config: Config, mesh: Mesh, num_examples: int) -> None:
    """The tables above, the AuxNet's share, and the size of stored multipliers."""
    console.print(device_table(mesh))
    console.print(cut_table(network, config))
    if config.method == "layer_parallel" and network.aux_net:
        share = aux_share(network.stages, network.aux_net)
        console.print(f"AuxNet: {share:.1%} of the network's forward cost, {share / mesh.shape['stage']:.1%} a device")
        stored = multiplier_bytes(config, network, num_examples)
        console.print(f"multiplier policy {config.multiplier}: {stored / 1e6:,.2f} MB stored over the mesh")
