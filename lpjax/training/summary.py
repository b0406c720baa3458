"""What a run is and what came of it: the tables before training, structure.json and result.json."""

import sys
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from lpjax.cli import printable
from lpjax.config.schema import Config
from lpjax.methods import METHODS
from lpjax.methods.base import Method
from lpjax.network.aux_net import aux_share
from lpjax.network.network import Network
from lpjax.nn.chain import Chain
from lpjax.nn.count import activation_bytes, chain_flops, chain_size, unit_flops
from lpjax.nn.schedule import Item, Work, to_json
from lpjax.parallel import platform
from lpjax.training.evaluate import Evaluation
from lpjax.training.log import Log
from lpjax.training.run import Run


def methods_of(config: Config) -> list[Method]:
    """The methods that a run trains by, in order."""
    return [METHODS[name] for name in config.all_methods]


def units(chain: Chain) -> str:
    """The units of a chain in a line of text; equal ones in a row as "n x name"."""
    return ", ".join((f"{repeat.count} x " if repeat.count > 1 else "") + repeat.unit.name for repeat in chain.repeats)


# ------------------------------------------------------------------------------------------------------ structure.json


def describe(network: Network, config: Config) -> dict[str, Any]:
    """structure.json: how a run's network is cut, and what its steps do, for other programs to read.

    Args:
      network: The network.
      config: The configuration.

    Returns:
      mesh: [S, D].
      examples: Of a stage column, batch_size / D.
      cuts: Positions in the chain where stages 1..K-1 start.
      stages, aux: The stages and, where a method has one, the AuxNet's pieces.  Of each its units, the shapes of an
        example at both ends, the number of its parameters, and the operations of its forward pass on one example;
        `beside`: those of what a stage computes beside its own units, by kind ("tail", "classifier").
      phases: Of each method its name, title and settings, `Method.metrics`, and the schedule of a step
        (`nn.schedule.to_json`), with the operations of what a device's examples make of it.
    """

    def row(chain: Chain) -> dict[str, Any]:
        return {
            "units": units(chain),
            "in_shape": chain.in_shape,
            "out_shape": chain.out_shape,
            "parameters": chain_size(chain),
            "flops": chain_flops(chain),
        }

    methods, column = methods_of(config), config.batch_size // config.mesh.data
    schedules = [method.work(network, config) for method in methods]
    beside = _beside(schedules[0], network.num_stages, column)
    return {
        "mesh": config.mesh_shape,
        "examples": column,
        "cuts": network.cuts,
        "stages": [row(stage) | {"beside": own} for stage, own in zip(network.stages, beside, strict=True)],
        "aux": [row(piece) for piece in network.aux_net],
        "phases": [
            {
                "method": method.name,
                "title": method.title,
                "settings": method.settings(config),
                "metrics": dict(method.metrics),
                "schedule": to_json(items, [item_flops(item) for item in items]),
            }
            for method, items in zip(methods, schedules, strict=True)
        ],
    }


def _beside(items: list[Item], num_stages: int, column: int) -> list[dict[str, float]]:
    """[K], operations of forward passes on an example beside a stage's own, by kind."""
    found: list[dict[str, float]] = [{} for _ in range(num_stages)]
    for item in items:
        if not isinstance(item, Work) or item.chain is None or item.gradients or item.stage is None:
            continue
        if item.kind not in ("stage", "recompute", "aux"):
            found[item.stage][item.kind] = found[item.stage].get(item.kind, 0.0) + item_flops(item) / column
    return found


def item_flops(item: Item) -> float:
    """Floating-point operations of an entry of a schedule, on all its examples; a gradient takes a forward pass's.

    A backward pass that finds no gradient of its input spares that of its first unit.
    """
    if not isinstance(item, Work) or item.chain is None:
        return 0.0
    forward = chain_flops(item.chain)
    if not item.gradients:
        return item.examples * forward
    found = forward * (len(item.gradients) + item.chain.remat)
    if item.gradients == ("weights",):
        found += forward - unit_flops(item.chain.units[0], item.chain.in_shape)
    return item.examples * found


# --------------------------------------------------------------------------------------------------------- result.json


def result(run: Run, ended: str, log: Log, evaluation: Evaluation | None) -> dict[str, Any]:
    """result.json: what a run is, and what came of it.

    Args:
      run: The run.
      ended: How.
      log: Its log.
      evaluation: Its test; None if the run did not finish.

    Returns:
      data_sha256: Of a text; null for other data.
      relative_violation: Of each interface, of the last step.
      seconds_total: Of all processes that carried the run on, up to their last checkpoints.
      seconds_per_step_median, data_seconds_median: Seconds of a step, and of its wait for data: wall clock of this
        process, without tests, checkpoints and the first (compiling) steps.
      The rest is what the names say.
    """
    config, network, methods = run.config, run.network, methods_of(run.config)
    clocks = log.step_seconds, log.data_seconds
    per_step, per_batch = (float(np.median(t[2:])) if len(t) > 2 else None for t in clocks)
    metrics = evaluation._asdict() if evaluation else dict.fromkeys(Evaluation._fields)
    settings = {name: value for method in methods for name, value in method.settings(config).items()}
    return {
        "ended": ended,
        "method": ", ".join(config.all_methods),
        "settings": settings,
        "num_stages": config.num_stages,
        "mesh": dict(zip(("stage", "data"), config.mesh_shape, strict=True)),
        "seed": config.seed,
        "data_sha256": run.spec.sha256,
        **metrics,
        "relative_violation": log.last.get("relative_violation", []),
        "steps": log.done,
        "epochs": log.done / run.step_inputs.steps_per_epoch,
        "seconds_total": log.seconds,
        "seconds_per_step_median": per_step,
        "data_seconds_median": per_batch,
        "corrupt_images": log.corrupt,
        "examples_per_second": config.batch_size / per_step if per_step else None,
        "parameters": {"stages": [chain_size(s) for s in network.stages], "aux": sum(map(chain_size, network.aux_own))},
        "versions": platform.versions(),
        "device": platform.device_name(),
    }


# -------------------------------------------------------------------------------------------------------------- tables


def device_table(mesh: Mesh) -> Table:
    """Make the table of which device is where on the mesh."""
    table = Table("stage", "data", "device", title="devices", title_justify="left")
    for (s, d), device in np.ndenumerate(mesh.devices):
        table.add_row(str(s), str(d), f"{device} ({device.device_kind})")
    return table


def cut_table(network: Network, config: Config) -> Table:
    """Make the table of the cut: the stages, and the AuxNet's pieces.

    Of each its units, parameters, forward GFLOP of a step, and what it keeps for its backward pass, both for the
    examples of one stage column, batch_size / mesh.data.  The caption has the waste of packing.
    """
    column = config.batch_size // config.mesh.data
    table = Table(
        "stage",
        Column("units", overflow="fold"),
        *(
            Column(name, justify="right", overflow="fold")
            for name in ("input", "parameters", "GFLOP forward", "activations MB")
        ),
        title=f"cut into {network.num_stages} stages, {column} examples a column",
        title_justify="left",
        caption=f"padding of the packed rows: {network.params.waste:.1%}",
        caption_justify="left",
    )

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
    if network.aux_net:
        table.add_section()
        for j, piece in enumerate(network.aux_net):
            row(f"aux {j}", piece)
    return table


def print_whole(console: Console, table: Table) -> None:
    """Print a table; where the terminal is too narrow for its longest words, it is as wide as they need."""
    least = Measurement.get(console, console.options.update(max_width=sys.maxsize), table).minimum
    if least > console.width:
        table.width = least
    console.print(table, crop=False)


def print_tables(console: Console, run: Run) -> None:
    """Print where the devices are, how the network is cut, the AuxNet's share of the cost, and the run's notes."""
    network, S = run.network, run.mesh.shape["stage"]
    for table in (device_table(run.mesh), cut_table(network, run.config)):
        print_whole(console, table)
    if network.aux_net and any(method.aux_net == "inputs" for method in methods_of(run.config)):
        share = aux_share(network.stages, network.aux_net)
        console.print(f"AuxNet: {share:.1%} of the network's forward cost, {share / S:.1%} a device")
    for note in run.notes:
        console.print(printable(note))
