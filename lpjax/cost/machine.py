"""Machines one does not have, for `scaling`: seconds of collectives and of a network's units by formulas."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lpjax.cost.traffic import sent_share
from lpjax.errors import BadInput
from lpjax.methods.base import WIDTH
from lpjax.nn.chain import Shape, UnitLike, make_chain
from lpjax.nn.count import activation_bytes, layers, unit_flops

UnitSeconds = Callable[[UnitLike, Shape, int], tuple[float, float]]
"""(unit, in_shape, examples) -> seconds of its forward and of its backward pass."""

Number = float | int
"""Of seconds or bytes, which may have been counted."""


@dataclass(frozen=True)
class Link:
    """A link that devices send over.

    Attributes:
      latency: Seconds of a message of no bytes.
      bandwidth: Bytes a second that a device sends, in one direction.

    Raises:
      BadInput: A negative latency, or no bandwidth.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency < 0 or self.bandwidth <= 0:
            raise BadInput(f"{self}: expected latency >= 0 seconds and bandwidth > 0 bytes a second; correct them")


def collective_seconds(collective: str, n: int, size: Number, link: Link) -> float:
    """Seconds of a collective among n devices; 0 for n = 1.

        psum: the faster of two algorithms of NCCL, which chooses by such a model (nccl/src/graph/tuning.cc)
          ring                        2 (n-1)/n size / bandwidth + 2 (n-1) latency
          double binary tree          2 size / bandwidth + 2 ceil(log2 n) latency
        all_gather, by a ring         (n-1) size / bandwidth + (n-1) latency
        reduce_scatter, by a ring     (n-1)/n size / bandwidth + (n-1) latency
        all_to_all, pairwise          (n-1)/n size / bandwidth + (n-1) latency
        ppermute                      size / bandwidth + latency

    Pairwise exchange is of Thakur, Rabenseifner, Gropp 2005, IJHPCA 19.

    Args:
      collective: Called as in `nn.schedule.Message`.
      n: Devices.
      size: Bytes, a device's own.
      link: Between the devices.
    """
    if n == 1:
        return 0.0
    sending = sent_share(collective, n) * size / link.bandwidth
    if collective == "psum":
        tree = 2 * (size / link.bandwidth + math.ceil(math.log2(n)) * link.latency)
        return min(sending + 2 * (n - 1) * link.latency, tree)
    return sending + (1 if collective == "ppermute" else n - 1) * link.latency


@dataclass(frozen=True)
class Machine:
    """Equal devices in nodes.

    Attributes:
      name: What it is called.
      unit_seconds: Seconds of a unit's passes.
      devices_per_node: How many devices a node has.
      inside: Link between devices of a node.
      between: Link of a device to those of other nodes.
      memory_bandwidth: Achieved, bytes a second.
      launch: Fixed seconds a step.
      start: Fixed seconds a collective.

    Raises:
      BadInput: No device in a node, or no memory bandwidth.
    """

    name: str
    unit_seconds: UnitSeconds
    devices_per_node: int
    inside: Link
    between: Link
    memory_bandwidth: float
    launch: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.devices_per_node < 1 or self.memory_bandwidth <= 0:
            raise BadInput(
                f"devices_per_node={self.devices_per_node}, memory_bandwidth={self.memory_bandwidth}: expected at "
                f"least one device and a bandwidth > 0 bytes a second; correct them"
            )


@dataclass(frozen=True)
class Group:
    """Devices of a machine that take part in a collective, such as a mesh axis, and what it takes, with `start`.

    An all-reduce of several nodes is one in each of them, and one between nodes in which each device has its part of
    the sum, all network cards at the same time; other collectives of several nodes use `between` alone.

    Attributes:
      machine: The machine.
      n: How many devices.
      stride: How far apart they are.
    """

    machine: Machine
    n: int
    stride: int = 1

    def seconds(self, collective: str, size: Number) -> float:
        """Seconds of a collective, called as in `nn.schedule.Message`, of `size` bytes, a device's own."""
        machine, start = self.machine, self.machine.start * (self.n > 1)
        if collective == "psum":
            local = max(1, min(self.n, machine.devices_per_node // self.stride))
            within = collective_seconds("psum", local, size, machine.inside)
            return start + within + collective_seconds("psum", -(-self.n // local), size / local, machine.between)
        link = machine.inside if self.n * self.stride <= machine.devices_per_node else machine.between
        return start + collective_seconds(collective, self.n, size, link)


@functools.cache
def kept_bytes(unit: UnitLike, in_shape: Shape, dtype: str | None) -> float:
    """Bytes that a unit keeps of an example for its backward pass: `count.activation_bytes`.

    Of three units in a row if one keeps the shape, as it runs in a stage.

    Args:
      unit: The unit.
      in_shape: Of its input, per example.
      dtype: Of activations; None: single precision.
    """
    count = 3 if make_chain([unit], in_shape).out_shape == in_shape else 1
    units = replace(make_chain([unit] * count, in_shape), dtype=dtype)
    return (activation_bytes(units, 2) - activation_bytes(units, 1)) / count


def roofline(
    *, peak_flops: float, memory_bandwidth: float, efficiency: float, kernel_seconds: float, dtype: str | None = None
) -> UnitSeconds:
    """Make seconds of a unit by the roofline model (Williams, Waterman, Patterson 2009) and a fixed time a layer.

        forward = layers * kernel_seconds + max(n flops / (efficiency peak_flops), (2 n kept + params) / bandwidth)

    n examples; flops: `count.unit_flops`; kept: `kept_bytes` of activations in `dtype`, each of which is written and
    read again in the forward pass (a residual block of two convolutions keeps 5 maps and makes 11 accesses).
    Backward: twice as many operations, kernels and accesses (the same block: 23 accesses).

    Args:
      peak_flops: Operations a second in `dtype`.
      memory_bandwidth: Achieved, bytes a second.
      efficiency: The share of `peak_flops` that convolutions achieve, in (0, 1].
      kernel_seconds: Of the kernels of a layer (convolution, statistics, normalisation) on next to no data.
      dtype: Of activations; None: single precision.

    Raises:
      BadInput: An efficiency outside (0, 1].
    """
    if not 0 < efficiency <= 1:
        raise BadInput(f"efficiency={efficiency}: expected a share of the peak, 0 < efficiency <= 1; correct it")

    @functools.cache
    def seconds(unit: UnitLike, in_shape: Shape, examples: int) -> tuple[float, float]:
        own = layers(unit, in_shape)
        work = examples * unit_flops(unit, in_shape) / (efficiency * peak_flops)
        moved = (2 * examples * kept_bytes(unit, in_shape, dtype) + WIDTH * own.params) / memory_bandwidth
        forward = max(1, own.kernels) * kernel_seconds + max(work, moved)
        return forward, 2 * forward

    return seconds
