"""Machines one does not have, for `scaling`: seconds of collectives and of a network's units by formulas."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lpjax.errors import BadInput
from lpjax.nn.chain import Shape, UnitLike, make_chain
from lpjax.nn.count import activation_bytes, layers, unit_flops

UnitSeconds = Callable[[UnitLike, Shape, int], tuple[float, float]]
"""(unit, in_shape, examples) -> seconds of its forward and of its backward pass."""

Number = float | int
"""Of seconds or bytes, which may have been counted."""

WIDTH = 4
"""Bytes of a parameter, a moment, and a value of a packet."""


@dataclass(frozen=True)
class Link:
    """latency: seconds of a message of no bytes.  bandwidth: bytes a second that a device sends, in one direction."""

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency < 0 or self.bandwidth <= 0:
            raise BadInput(f"{self}: expected latency >= 0 seconds and bandwidth > 0 bytes a second; correct them")


def all_reduce(n: int, size: Number, link: Link) -> float:
    """The faster of two algorithms of NCCL, which chooses by such a model (nccl/src/graph/tuning.cc); 0 for n = 1.

    ring                 2 (n-1)/n size / bandwidth + 2 (n-1) latency
    double binary tree   2 size / bandwidth + 2 ceil(log2 n) latency
    """
    ring = 2 * (n - 1) * (size / n / link.bandwidth + link.latency)
    return min(ring, 2 * (size / link.bandwidth + math.ceil(math.log2(n)) * link.latency)) if n > 1 else 0.0


def all_to_all(n: int, size: Number, link: Link) -> float:
    """Pairwise exchange: (n-1)/n size / bandwidth + (n-1) latency (Thakur, Rabenseifner, Gropp 2005, IJHPCA 19)."""
    return (n - 1) * (size / n / link.bandwidth + link.latency)


def all_gather(n: int, size: Number, link: Link) -> float:
    """Ring: (n-1) size / bandwidth + (n-1) latency, `size` a device's own."""
    return (n - 1) * (size / link.bandwidth + link.latency)


def reduce_scatter(n: int, size: Number, link: Link) -> float:
    """Ring: (n-1)/n size / bandwidth + (n-1) latency, `size` a device's own."""
    return (n - 1) * (size / n / link.bandwidth + link.latency)


def ppermute(n: int, size: Number, link: Link) -> float:
    """size / bandwidth + latency; 0 for n = 1."""
    return size / link.bandwidth + link.latency if n > 1 else 0.0


COLLECTIVES = {
    "all_gather": all_gather,
    "all_to_all": all_to_all,
    "reduce_scatter": reduce_scatter,
    "ppermute": ppermute,
}
"""But the all-reduce, which several links share."""


@dataclass(frozen=True)
class Machine:
    """Equal devices in nodes.

    inside, between: links of devices of a node, and of a device to those of other nodes.
    memory_bandwidth: achieved, bytes a second.  launch: fixed seconds a step.  start: fixed seconds a collective.
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
    """n devices of a machine that are `stride` apart, such as a mesh axis: `start` and what a collective takes.

    An all-reduce of several nodes is one in each of them, and one between nodes in which each device has its part of
    the sum, all network cards at the same time; other collectives of several nodes use `between` alone.
    """

    machine: Machine
    n: int
    stride: int = 1

    def all_reduce(self, size: Number) -> float:
        """Seconds of an all-reduce of `size` bytes, a device's own."""
        machine = self.machine
        local = max(1, min(self.n, machine.devices_per_node // self.stride))
        within = all_reduce(local, size, machine.inside)
        return machine.start * (self.n > 1) + within + all_reduce(-(-self.n // local), size / local, machine.between)

    def __call__(self, collective: Callable[[int, Number, Link], float], size: Number) -> float:
        """Seconds of another collective of `size` bytes."""
        machine = self.machine
        link = machine.inside if self.n * self.stride <= machine.devices_per_node else machine.between
        return machine.start * (self.n > 1) + collective(self.n, size, link)

    def seconds(self, collective: str, size: Number) -> float:
        """Seconds of a collective, called as in `nn.schedule.Message`, of `size` bytes, a device's own."""
        return self.all_reduce(size) if collective == "psum" else self(COLLECTIVES[collective], size)


@functools.cache
def kept_bytes(unit: UnitLike, in_shape: Shape, dtype: str | None) -> float:
    """What a unit keeps of an example for its backward pass, activations in `dtype`: `partition.activation_bytes`, of
    three of them in a row if it keeps the shape, as it runs in a stage."""
    count = 3 if make_chain([unit], in_shape).out_shape == in_shape else 1
    units = replace(make_chain([unit] * count, in_shape), dtype=dtype)
    return (activation_bytes(units, 2) - activation_bytes(units, 1)) / count


def roofline(
    *, peak_flops: float, memory_bandwidth: float, efficiency: float, kernel_seconds: float, dtype: str | None = None
) -> UnitSeconds:
    """Seconds of a unit by the roofline model (Williams, Waterman, Patterson 2009), and a fixed time a layer:

        forward = layers * kernel_seconds + max(n flops / (efficiency peak_flops), (2 n kept + params) / bandwidth)

    n examples; flops: `partition.unit_flops`; kept: `kept_bytes` of activations in `dtype`, each of which is written
    and read again in the forward pass (a residual block of two convolutions keeps 5 maps and makes 11 accesses).
    Backward: twice as many operations, kernels and accesses (the same block: 23 accesses).

    Args:
      peak_flops: operations a second in `dtype`; efficiency: the share of them that convolutions achieve, in (0, 1].
      memory_bandwidth: achieved, bytes a second.
      kernel_seconds: of the kernels of a layer (convolution, statistics, normalisation) on next to no data.
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
