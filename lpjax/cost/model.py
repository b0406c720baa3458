"""What a training step would take: seconds on machines one does not have, and memory; nothing is run.

A method's schedule (`Method.work`) says what each device computes and sends and what waits for what; a `Machine` says
what each of these takes; `nn.schedule.place` puts them one after another.  Nothing overlaps that the schedule does not
let overlap: a step of lpjax is one program whose collectives wait for what they send.

Memory of a device is what the method holds between steps and what the schedule keeps within one.

Left out: what `lax.scan` and `lax.switch` cost, and everything before the batch is on the devices.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lpjax.config.schema import Config
from lpjax.cost.machine import Group, Machine
from lpjax.methods import METHODS
from lpjax.methods.base import WIDTH
from lpjax.network.network import Network
from lpjax.nn.count import activation_bytes, chain_layers
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
    """Seconds of one entry of a schedule.

    Attributes:
      own: Of computing or sending.
      norms: Of synchronising batch norm.
    """

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
    """Predict the seconds of a step.

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
    """Group the devices along each axis of a mesh, and all of them.

    Args:
      machine: Whose devices they are.
      shape: Devices along 'stage' and 'data'.
      adjacent: The mesh axis whose devices are next to each other.

    Returns:
      A group for each choice of mesh axes that a collective may run over.
    """
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

    Args:
      item: The entry.
      machine: The machine.
      groups: Its devices by mesh axes, see `mesh_groups`.
      synchronised: Whether batch norms are averaged over the devices that the entry names.
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


def device_bytes(network: Network, config: Config, num_examples: int) -> dict[str, int]:
    """Estimated memory of the fullest device in a step, without compiling anything.

    Args:
      network: The network.
      config: The configuration.
      num_examples: Of the training set.

    Returns:
      Bytes by kind, those of `Method.holds`; gradients, as large as the parameters; activations, what forward passes
        keep for backward passes where that is most; packets, what the exchanges send and receive.
    """
    method = METHODS[config.method]
    sizes = method.holds(network, config, num_examples)
    items = method.work(network, config)
    activations, packets = max((_allocated(items, d) for d in range(config.mesh_shape[0])), key=sum)
    found = {"packets": 0, **sizes, "gradients": sizes["parameters"], "activations": activations}
    return found | {"packets": found["packets"] + packets}


def memory_in_words(network: Network, config: Config, num_examples: int) -> str:
    """Say `device_bytes` in a line for a person, MB by kind.

    Args:
      network: The network.
      config: The configuration.
      num_examples: Of the training set.
    """
    memory = device_bytes(network, config, num_examples)
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in memory.items() if size)
    return f"estimated memory of a device: {sum(memory.values()) / 1e6:,.1f} MB ({parts})"


def _allocated(items: Sequence[Item], device: int) -> tuple[int, int]:
    """Bytes of activations and of packets on a device, where both together are most."""
    change = np.zeros((2, len(items) + 1), np.int64)
    for position, item in enumerate(items):
        if not isinstance(item, Work) or item.device != device:
            continue
        end = len(items) if item.until is None else item.until + 1
        kept = (item.keeps, 0) if item.kind == "keep" else (0, item.keeps)
        if item.chain is not None and item.until is not None:
            kept = activation_bytes(item.chain, item.examples) + item.keeps, 0
        change[:, position] += kept
        change[:, end] -= kept
    alive = change.cumsum(1)
    activations, packets = alive[:, alive.sum(0).argmax()].tolist()
    return activations, packets
