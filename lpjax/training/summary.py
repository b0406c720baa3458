"""How a run's network is cut, for other programs to read: structure.json, and what the tables print."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from lpjax.config.schema import Config
from lpjax.cost.memory import device_bytes
from lpjax.methods import METHODS
from lpjax.network.aux_net import aux_share
from lpjax.network.network import Network
from lpjax.nn.chain import Chain
from lpjax.nn.count import activation_bytes, chain_flops, chain_size
from lpjax.parallel import platform
from lpjax.state.train_state import multiplier_bytes
from lpjax.training.evaluate import Evaluation
from lpjax.training.log import Log
from lpjax.training.run import Run
from lpjax.training.structure import units


def summary(run: Run, ended: str, log: Log, evaluation: Evaluation | None) -> dict[str, Any]:
    """result.json.

    test_*, aux_*: see `Evaluation`; null if the run did not finish.  relative_violation: per interface, of the last
    step.  seconds_total: of all processes that carried the run on, up to their last checkpoints.
    seconds_per_step_median and data_seconds_median (waiting for data, see `TrainBatches`): wall clock of this process,
    without evaluation, checkpoints and the first (compiling) steps.
    """
    config, network = run.config, run.network
    per_step, per_batch = (float(np.median(t[2:])) if len(t) > 2 else None for t in log.times)
    figures = evaluation._asdict() if evaluation else dict.fromkeys(Evaluation._fields)
    pieces = network.aux_own if any(METHODS[name].aux_net for name in config.all_methods) else ()
    return {
        "ended": ended,
        "method": ", ".join(config.all_methods),
        "multiplier": config.multiplier if "layer_parallel" in config.all_methods else None,
        "num_stages": config.num_stages,
        "mesh": dict(zip(("stage", "data"), config.mesh_shape, strict=True)),
        "seed": config.seed,
        **figures,
        "relative_violation": log.last.get("relative_violation", []),
        "steps": log.done,
        "epochs": log.done / run.recipe.steps_per_epoch,
        "seconds_total": log.seconds,
        "seconds_per_step_median": per_step,
        "data_seconds_median": per_batch,
        "corrupt_images": log.corrupt,
        "examples_per_second": config.batch_size / per_step if per_step else None,
        "parameters": {"stages": [chain_size(s) for s in network.stages], "aux": sum(map(chain_size, pieces))},
        "versions": platform.versions(),
        "device": platform.device_name(),
    }


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
