"""What a training step would take on machines one does not have: seconds by formulas, nothing is run.

A method's schedule (`Method.work`) says what each device computes and sends and what waits for what; a `Machine` says
what each of these takes; `nn.schedule.place` puts them one after another.  Nothing overlaps that the schedule does not
let overlap: a step of lpjax is one program whose collectives wait for what they send.

Left out: what `lax.scan` and `lax.switch` cost, and everything before the batch is on the devices.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lpjax.config.schema import Config
from lpjax.cost.machine import Group, Machine
from lpjax.methods import METHODS
from lpjax.methods.base import WIDTH
from lpjax.network.network import Network
from lpjax.nn.count import chain_layers
from lpjax.nn.schedule import Item, Work, critical, place

Groups = dict[tuple[str, ...], Group]


class StepSeconds(NamedTuple):
    """Seconds of a step.

    Attributes:
      total: Of the whole step.
      parts: What they go to, along the row of entries that each start when the one before ends: by the labels of the
        schedule ("stage forward", "update", "exchange", ..), "batch norm" for its collectives, and "launch".
    """

    total: float
    parts: dict[str, float]


class Seconds(NamedTuple):
    """Of one entry of a schedule: of computing or sending, and of synchronising batch norm."""

    own: float
    norms: float = 0.0


def step_seconds(
    network: Network,
    config: Config,
    machine: Machine,
    *,
    adjacent: Literal["data", "stage"] = "data",
    synchronised: bool = True,
) -> StepSeconds:
    """Seconds of a step.

    Args:
      network: The network.
      config: Its method, mesh, batch size and settings; with all fields filled in.
      machine: What it would run on.
      adjacent: The mesh axis whose devices are next to each other; `jax.make_mesh` makes it 'data'.
      synchronised: Batch norm is of all devices' examples, as in lpjax; otherwise of a device's own.
    """
    items = METHODS[config.method].work(network, config)
    groups = mesh_groups(machine, config.mesh_shape, adjacent)
    seconds = [item_seconds(item, machine, groups, synchronised) for item in items]
    spans = place(items, [sum(own) for own in seconds])
    parts: dict[str, float] = {}
    for position in critical(items, spans):
        for label, own in zip((items[position].label, "batch norm"), seconds[position], strict=True):
            parts[label] = parts.get(label, 0.0) + own
    parts["launch"] = machine.launch
    return StepSeconds(sum(parts.values()), {label: own for label, own in parts.items() if own})


def mesh_groups(machine: Machine, shape: Sequence[int], adjacent: Literal["data", "stage"] = "data") -> Groups:
    """The devices along each axis of a mesh, and all of them."""
    stage, data = shape
    strides = (1, stage) if adjacent == "stage" else (data, 1)
    return {
        ("stage",): Group(machine, stage, strides[0]),
        ("data",): Group(machine, data, strides[1]),
        ("stage", "data"): Group(machine, stage * data),
    }


def item_seconds(item: Item, machine: Machine, groups: Groups, synchronised: bool = True) -> Seconds:
    """Seconds of one entry of a schedule on a machine.

    A backward pass through a chain that finds no gradient of its input spares half the backward pass of its first
    unit; one that finds nothing else takes half.  With `remat` a backward pass computes its forward pass again.
    """
    if not isinstance(item, Work):
        return Seconds(groups[item.axes].seconds(item.collective, item.bytes))
    if item.chain is None:
        return Seconds(WIDTH * item.accesses / machine.memory_bandwidth)
    forward = backward = norms = 0.0
    group = groups.get(item.norm_axes)
    for repeat, (count, own) in zip(item.chain.repeats, chain_layers(item.chain), strict=True):
        once = machine.unit_seconds(repeat.unit, repeat.in_shape, item.examples)
        forward, backward = forward + count * once[0], backward + count * once[1]
        if group and synchronised:
            norms += count * sum(group.seconds("psum", 2 * WIDTH * channels) for channels in own.norms)
    if not item.gradients:
        return Seconds(forward, norms)
    if item.gradients == ("weights",):
        first, in_shape = item.chain.units[0], item.chain.in_shape
        backward -= machine.unit_seconds(first, in_shape, item.examples)[1] / 2
    if item.gradients == ("input",):
        backward /= 2
    again = item.chain.remat
    return Seconds(backward + again * forward, (1 + again) * norms)
