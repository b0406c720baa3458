"""Steps of all methods on H100 and TPU v5p machines of up to 1,024 devices, by the cost model.

Nothing is run.  For each network, batch and number of devices: the fastest mesh (S x D, K = S) of each method that fits
into a device's memory; layer_parallel with the full coarse tail and three widths of the AuxNet, on the stages' maps or
on a grid, coarse_adjoint with these on the grid, the pipeline with its best number of micro-batches.  Speed alone:
accuracy is another table.  Twice: batch norm of all examples, as in lpjax, and of each device's own, as is more common
in data parallelism.  A batch is the whole machine's: 128 images give at most 128 devices one each.  Some minutes on one
core.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from experiments.harness import markdown
from experiments.harness.experiment import Experiment, Json, Option, Table
from lpjax.config.schema import AuxConfig, Config, DelayedConfig, MeshConfig, PipelineConfig
from lpjax.cost.machine import Link, Machine, roofline
from lpjax.cost.model import StepSeconds, device_bytes, step_seconds
from lpjax.methods import resolve
from lpjax.models.imagenet_resnet import imagenet_resnet
from lpjax.models.preact_resnet import wide_resnet
from lpjax.models.resnet import resnet
from lpjax.network import network
from lpjax.network.network import Network
from lpjax.network.partition import even_cuts
from lpjax.nn.chain import Shape, UnitLike, make_chain

NETWORKS: dict[str, tuple[tuple[UnitLike, ...], Shape]] = {
    "ResNet-110": (resnet(depth=110, width=16, classes=10), (32, 32, 3)),
    "ResNet-1202": (resnet(depth=1202, width=16, classes=10), (32, 32, 3)),
    "WRN-28-10": (wide_resnet(depth=28, widen=10, classes=10), (32, 32, 3)),
    "ResNet-152": (imagenet_resnet(depth=152, classes=1000), (224, 224, 3)),
}

PER_DEVICE = 32
CIFAR = ("ResNet-110", "ResNet-1202", "WRN-28-10")
BATCHES: dict[str, tuple[int | None, ...]] = dict.fromkeys(CIFAR, (128, 1024)) | {"ResNet-152": (256, 8192, None)}
"""Examples of a step; None: `PER_DEVICE` of each device.  8,192: the most that cost no accuracy in arXiv:1706.02677."""

DEVICES = (4, 8, 16, 64, 256, 1024)
MICRO_BATCHES = (2, 4, 8, 16, 32)
WIDTHS = (0.25, 0.5, 1.0)
"""Of the AuxNet.  Below 1 a piece has more convolutions, to fewer channels and back: less to compute, more kernels."""

GRIDS = dict.fromkeys(CIFAR, 16) | {"ResNet-152": 28}
"""Side of the maps that an AuxNet on a grid computes on, as in the published recipes."""

FLOPS, MEMORY, LINK = 0.4, 0.5, 0.8
"""Assumed shares of the peak.  MEMORY is fitted to 2,600 images a second of ResNet-50 on an A100 (2.04 TB/s assumed),
measured in github.com/huggingface/pytorch-image-models/issues/1491; the others are guesses."""


def achieving(name: str, *, peak_flops: float, memory_bandwidth: float, kernel_seconds: float, **parts: Any) -> Machine:
    """A machine of these peaks, of which it achieves the assumed shares, in bfloat16."""
    achieved = MEMORY * memory_bandwidth
    unit_seconds = roofline(
        peak_flops=peak_flops,
        memory_bandwidth=achieved,
        efficiency=FLOPS,
        kernel_seconds=kernel_seconds,
        dtype="bfloat16",
    )
    return Machine(name, unit_seconds, memory_bandwidth=achieved, **parts)


def h100(kernels: float) -> Machine:
    """DGX H100s of eight GPUs; `kernels` scales the seconds of kernels.

    NVIDIA H100 SXM5 data sheet: 989 TFLOP/s bfloat16 (dense), 3.35 TB/s, 80 GB, NVLink 900 GB/s, both directions
    together.  DGX H100 data sheet: a network card of 400 Gb/s a GPU.  nccl/src/graph/tuning.cc, protocol LL: a
    collective takes 6.6 us, an NVLink hop 0.6 us, a network hop 5 us.
    Assumed: four kernels of 2.5 us a layer; 3.4 us more a collective, for its launch; 50 us of the host a step.
    """
    return achieving(
        "H100",
        peak_flops=989e12,
        memory_bandwidth=3.35e12,
        kernel_seconds=kernels * 10e-6,
        devices_per_node=8,
        inside=Link(0.6e-6, LINK * 450e9),
        between=Link(5e-6, LINK * 50e9),
        launch=50e-6,
        start=10e-6,
    )


def tpu_v5p(kernels: float) -> Machine:
    """A slice of a TPU v5p pod; `kernels` as above.

    docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s bfloat16, 2,765 GB/s, 95 GB; a 3-D torus of 8,960 chips.
    jax-ml.github.io/scaling-book: 90 GB/s a link and direction, 1 us a hop.
    Assumed: three operations of 1 us a layer; shares of the peak as on a GPU, though 16 channels may be padded to 128
    lanes; a collective uses both links of one axis (all_to_all in a cube of up to 4x4x4 chips is no slower), and takes
    2 us besides; 20 us of the host a step.
    """
    link = Link(1e-6, 2 * 90e9)
    return achieving(
        "TPU v5p",
        peak_flops=459e12,
        memory_bandwidth=2.765e12,
        kernel_seconds=kernels * 3e-6,
        devices_per_node=8960,
        inside=link,
        between=link,
        launch=20e-6,
        start=2e-6,
    )


CAPACITY = {"H100": 80e9, "TPU v5p": 95e9}
"""Bytes of a device's memory."""

OURS, RIVALS = ("layer_parallel", "coarse_adjoint"), ("data_parallel", "pipeline")


@functools.cache
def build(name: str, num_stages: int, width: float = WIDTHS[0], grid: int | None = None) -> Network:
    """A network cut evenly by the seconds of `PER_DEVICE` examples on an H100."""
    units, shape = NETWORKS[name]
    unit_seconds, shapes = h100(1).unit_seconds, make_chain(units, shape).shapes[:-1]
    cuts = even_cuts([sum(unit_seconds(*unit, PER_DEVICE)) for unit in zip(units, shapes, strict=True)], num_stages)
    config = Config(
        num_stages=num_stages, cuts=cuts, bfloat16=True, standardise=True, aux=AuxConfig(width=width, grid=grid)
    )
    return network.build(units, shape, config)


@dataclass(frozen=True)
class Choice:
    """A way to train on so many devices.

    Attributes:
      row: The method.
      mesh: (S, D).
      how: Its options in words.
      seconds: Of a step.
      memory: () -> bytes of a device.
    """

    row: str
    mesh: tuple[int, int]
    how: str
    seconds: StepSeconds
    memory: Callable[[], int]


def configuration(batch: int, stage: int, devices: int, **options: Any) -> Config:
    """With K = S stages on so many devices."""
    return resolve(Config(num_stages=stage, batch_size=batch, mesh=MeshConfig(stage, devices // stage), **options))


def choices(name: str, machine: Machine, batch: int, devices: int, synchronised: bool) -> Iterator[Choice]:
    """The methods on all meshes of so many devices."""

    def choice(
        row: str, stage: int, how: str = "", width: float = WIDTHS[0], grid: int | None = None, **options: Any
    ) -> Iterator[Choice]:
        """With either axis inside the nodes, where that makes a difference."""
        config = configuration(batch, stage, devices, **{"method": row} | options)
        network = build(name, stage, width, grid)
        memory = functools.partial(memory_bytes, network, config)
        for adjacent in ("data", "stage") if stage > 1 and devices > machine.devices_per_node else ("data",):
            seconds = step_seconds(network, config, machine, adjacent=adjacent, synchronised=synchronised)
            words = [how] * bool(how) + ["columns in a node"] * (adjacent == "stage")
            yield Choice(row, config.mesh_shape, ", ".join(words), seconds, memory)

    yield from choice("data_parallel", 1)
    for S in (2**i for i in range(1, 7) if 2**i <= min(devices, len(NETWORKS[name][0]))):
        yield from choice("fdg", S, method="delayed", delayed=DelayedConfig("fdg"))
        yield from choice("local", S)
        for M in (M for M in MICRO_BATCHES if batch * S // devices % M == 0):
            yield from choice("pipeline", S, f"M {M}", pipeline=PipelineConfig(M))
        for width, grid in itertools.product(WIDTHS, (None, GRIDS[name])):
            how = f"width {width:g}" + (f", grid {grid}" if grid else "")
            for row in OURS if grid else OURS[:1]:
                yield from choice(row, S, how, width, grid)


def memory_bytes(network: Network, config: Config) -> int:
    """Of the fullest device; no method here stores anything for each example of the training set."""
    return sum(device_bytes(network, config, num_examples=0).values())


def rounded(value: float) -> float:
    """To four digits, which is more than a prediction has."""
    return float(f"{value:.4g}")


def compare(name: str, machine: Machine, batch: int, devices: int, synchronised: bool) -> dict[str, Any]:
    """Each method's fastest choice that fits, and the fastest of `OURS` and `RIVALS`; speed-ups against one device,
    which need not have the memory.  data_parallel_free: data parallelism whose collectives take no time, a bound for
    what hides them.
    """
    serial = step_seconds(build(name, 1), configuration(batch, 1, 1, method="serial"), machine).total
    methods: dict[str, dict[str, Any]] = {}
    for choice in sorted(choices(name, machine, batch, devices, synchronised), key=lambda choice: choice.seconds.total):
        if choice.row not in methods and (memory := choice.memory()) <= CAPACITY[machine.name]:
            seconds, parts = choice.seconds
            methods[choice.row] = {
                "speedup": rounded(serial / seconds),
                "mesh": choice.mesh,
                "how": choice.how,
                "memory_bytes": rounded(memory),
            }
            if choice.row == "data_parallel":
                free = seconds - parts.get("batch norm", 0.0) - parts.get("gradients", 0.0)
                methods["data_parallel_free"] = {"speedup": rounded(serial / free)}
    winner = max((m for m in (*OURS, *RIVALS) if m in methods), key=lambda m: methods[m]["speedup"], default="none")
    case = {"network": name, "machine": machine.name, "batch": batch, "devices": devices}
    case |= {"serial_seconds": rounded(serial)}
    norm = "synchronised" if synchronised else "own"
    return case | {"batch_norm": norm, "winner": winner, "methods": methods}


def lead(row: Json, *rivals: str) -> float | None:
    """Speed of the faster of `OURS` over that of the fastest of `rivals`; None where none of one side fits."""
    speed = {method: found["speedup"] for method, found in row["methods"].items()}
    ours, theirs = ([speed[m] for m in names if m in speed] for names in (OURS, rivals))
    return max(ours) / max(theirs) if ours and theirs else None


def leads(rows: list[Json], machine: str, batch_norm: str, *rivals: str) -> str:
    """A table: `lead` by network, batch and number of devices."""
    mine = [row for row in rows if (row["machine"], row["batch_norm"]) == (machine, batch_norm)]
    shown = []
    for (name, scaling), group in itertools.groupby(mine, lambda row: (row["network"], row["scaling"])):
        found = {row["devices"]: lead(row, *rivals) for row in group}
        shown.append([name, scaling, *(markdown.shown(found.get(n), ".2f") for n in DEVICES)])
    return markdown.table(["network", "", *(f"{n} devices" for n in DEVICES)], shown)


def large(made: Json) -> str:
    """`leads` over the faster of data parallelism and a pipeline, on each machine."""
    return "\n\n".join(f"{machine}:\n\n{leads(made['rows'], machine, 'own', *RIVALS)}" for machine in CAPACITY)


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON at the end."""
    rows = []
    machines = h100(args.kernels), tpu_v5p(args.kernels)
    names = args.networks.split(",") if args.networks else list(BATCHES)
    for synchronised, name, machine in itertools.product((True, False), names, machines):
        for fixed, devices in itertools.product(BATCHES[name], DEVICES):
            if (batch := fixed or PER_DEVICE * devices) >= devices:
                row = compare(name, machine, batch, devices, synchronised)
                rows.append({"scaling": f"batch {fixed}" if fixed else f"{PER_DEVICE} examples a device"} | row)
    assumed = {"flops": FLOPS, "memory": MEMORY, "link": LINK, "kernels": args.kernels}
    yield {"hardware": "none: predictions", "assumed": assumed, "rows": rows}


EXPERIMENT = Experiment(
    name="scale",
    doc=__doc__,
    run=run,
    options=(
        Option("kernels", 1.0, "factor on the assumed seconds of kernels"),
        Option("networks", None, f"only these of {', '.join(NETWORKS)}, with commas between them"),
    ),
    out="scale",
    show=large,
    tables={"large": Table(large, ("scale",))},
)
