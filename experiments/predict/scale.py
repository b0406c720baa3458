"""Layer-parallel training, data parallelism, pipelines and delayed gradients on up to 1,024 devices, by the cost model.

For each network, batch (the whole machine's) and number of devices: the fastest mesh (S x D, K = S) of each method that
fits into memory, with several AuxNets and numbers of micro-batches; batch norm of each device's own examples.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from lpjax.config.schema import AuxConfig, Config, DelayedConfig, MeshConfig, PipelineConfig
from lpjax.cost.machine import Link, Machine, roofline
from lpjax.cost.model import device_bytes, step_seconds
from lpjax.methods import resolve
from lpjax.models.preact_resnet import wide_resnet
from lpjax.models.resnet import imagenet_resnet, resnet
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
CIFAR = ("ResNet-110", "ResNet-1202", "WRN-28-10")
GRIDS = dict.fromkeys(CIFAR, 16) | {"ResNet-152": 28}
BATCHES: dict[str, tuple[int | None, ...]] = dict.fromkeys(CIFAR, (128, 1024)) | {"ResNet-152": (256, 8192, None)}
PER_DEVICE = 32
"""Side of the AuxNet's maps, as in the config files.  Examples of a step; None: `PER_DEVICE` of each device; 8,192: the
most that cost no accuracy in arXiv:1706.02677."""

DEVICES, MICRO_BATCHES, WIDTHS = (4, 8, 16, 64, 256, 1024), (2, 4, 8, 16, 32), (0.25, 0.5, 1.0)
"""Of the AuxNet.  Below 1 a piece has more convolutions, to fewer channels and back: less to compute, more kernels."""

CAPACITY = {"H100": 80e9, "TPU v5p": 95e9}  # bytes
FLOPS, MEMORY, LINK = 0.4, 0.5, 0.8
"""Assumed shares of the peak.  MEMORY is fitted to 2,600 images a second of ResNet-50 on an A100 (2.04 TB/s assumed),
measured in github.com/huggingface/pytorch-image-models/issues/1491; the others are guesses."""

OURS, RIVALS = ("layer_parallel", "coarse_adjoint"), ("data_parallel", "pipeline", "delayed")


def achieving(name: str, peak_flops: float, bandwidth: float, kernel_seconds: float, **parts: Any) -> Machine:
    """A machine of these peaks, of which it achieves the assumed shares, in bfloat16."""
    peaks: Any = {"peak_flops": peak_flops, "memory_bandwidth": MEMORY * bandwidth, "efficiency": FLOPS}
    unit_seconds = roofline(**peaks, kernel_seconds=kernel_seconds, dtype="bfloat16")
    return Machine(name, unit_seconds, memory_bandwidth=MEMORY * bandwidth, **parts)


def h100(kernels: float) -> Machine:
    """DGX H100s of eight GPUs; `kernels` scales the seconds of kernels.

    NVIDIA H100 SXM5 data sheet: 989 TFLOP/s bfloat16 (dense), 3.35 TB/s, 80 GB, NVLink 900 GB/s, both directions
    together.  DGX H100 data sheet: a network card of 400 Gb/s a GPU.  nccl/src/graph/tuning.cc, protocol LL: a
    collective takes 6.6 us, an NVLink hop 0.6 us, a network hop 5 us.  Assumed: four kernels of 2.5 us a layer; 3.4 us
    more a collective, for its launch; 50 us of the host a step.
    """
    links: Any = {"inside": Link(0.6e-6, LINK * 450e9), "between": Link(5e-6, LINK * 50e9)}
    return achieving("H100", 989e12, 3.35e12, kernels * 10e-6, devices_per_node=8, launch=50e-6, start=10e-6, **links)


def tpu_v5p(kernels: float) -> Machine:
    """A slice of a TPU v5p pod; `kernels` as above.

    docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s bfloat16, 2,765 GB/s, 95 GB; a 3-D torus of 8,960 chips.
    jax-ml.github.io/scaling-book: 90 GB/s a link and direction, 1 us a hop.  Assumed: three operations of 1 us a layer;
    shares of the peak as on a GPU, though 16 channels may be padded to 128 lanes; a collective uses both links of one
    axis, and takes 2 us besides; 20 us of the host a step.
    """
    parts: Any = dict.fromkeys(("inside", "between"), Link(1e-6, 2 * 90e9)) | {"launch": 20e-6, "start": 2e-6}
    return achieving("TPU v5p", 459e12, 2.765e12, kernels * 3e-6, devices_per_node=8960, **parts)


@functools.cache
def build(name: str, num_stages: int, width: float = WIDTHS[0], grid: int | None = None) -> Network:
    """A network cut evenly by the seconds of `PER_DEVICE` examples on an H100."""
    units, shape = NETWORKS[name]
    unit_seconds, shapes = h100(1).unit_seconds, make_chain(units, shape).shapes[:-1]
    cuts = even_cuts([sum(unit_seconds(*unit, PER_DEVICE)) for unit in zip(units, shapes, strict=True)], num_stages)
    options: Json = {"bfloat16": True, "standardise": True, "aux": AuxConfig(width=width, grid=grid)}
    return network.build(units, shape, Config(num_stages=num_stages, cuts=cuts, **options))


Choice = tuple[str, tuple[int, int], str, float, Callable[[], dict[str, int]]]
"""A way to train: the method, (S, D), its options in words, seconds of a step, and what finds a device's bytes."""


def choices(name: str, machine: Machine, batch: int, devices: int) -> Iterator[Choice]:
    """The methods on all meshes of so many devices; serial on the first of them."""

    def choice(row: str, S: int, how: str = "", width: float = 0.25, grid: int | None = None, **more: Any) -> Any:
        """With either axis inside the nodes, where that makes a difference."""
        mesh = MeshConfig(S, 1 if row == "serial" else devices // S)
        network = build(name, S, width, grid)
        config = resolve(Config(method=row, num_stages=S, batch_size=batch, mesh=mesh, **more))
        for adjacent in ("data", "stage") if S > 1 and devices > machine.devices_per_node else ("data",):
            seconds = step_seconds(network, config, machine, adjacent=adjacent, synchronised=False).total
            words = ", ".join([how] * bool(how) + ["columns in a node"] * (adjacent == "stage"))
            memory = functools.partial(device_bytes, network, config, num_examples=0)  # which no method here stores
            yield row, config.mesh_shape, words, seconds, memory

    yield from choice("serial", 1)
    yield from choice("data_parallel", 1)
    for S in (2**i for i in range(1, 7) if 2**i <= min(devices, len(NETWORKS[name][0]))):
        for M in (M for M in MICRO_BATCHES if batch * S // devices % M == 0):
            for keep in ("inputs", "activations"):
                yield from choice("pipeline", S, f"M {M}, {keep}", pipeline=PipelineConfig(M, keep))
                yield from choice("delayed", S, f"M {M}, {keep}", delayed=DelayedConfig(micro_batches=M, keep=keep))
        for width, grid in itertools.product(WIDTHS, (None, GRIDS[name])):
            how = f"width {width:g}" + (f", grid {grid}" if grid else "")
            for row in OURS if grid else OURS[:1]:
                yield from choice(row, S, how, width, grid)


def compare(name: str, machine: Machine, batch: int, devices: int) -> Json:
    """Each method's fastest choice that fits, and the fastest of all; speed-ups against one device of any memory."""
    (_, _, _, serial, _), *found = choices(name, machine, batch, devices)
    methods: dict[str, Json] = {}
    for row, mesh, how, seconds, memory in sorted(found, key=lambda own: own[3]):
        if row not in methods and (size := sum(memory().values())) <= CAPACITY[machine.name]:
            speedup, memory_bytes = float(f"{serial / seconds:.4g}"), float(f"{size:.4g}")  # a prediction has no more
            methods[row] = {"speedup": speedup, "mesh": mesh, "how": how, "memory_bytes": memory_bytes}
    winner = max(methods, key=lambda method: methods[method]["speedup"], default="none")
    case = {"network": name, "machine": machine.name, "batch": batch, "devices": devices}
    return {**case, "serial_seconds": float(f"{serial:.4g}"), "batch_norm": "own", "winner": winner, "methods": methods}


def lead(row: Json) -> float | None:
    """Speed of the faster of `OURS` over that of the faster of `RIVALS`; None where none of one side fits."""
    ours, theirs = ([row["methods"][m]["speedup"] for m in names if m in row["methods"]] for names in (OURS, RIVALS))
    return max(ours) / max(theirs) if ours and theirs else None


def large(made: Json) -> str:
    """`lead` by network, batch and number of devices, a table a machine."""
    tables = []
    for machine in CAPACITY:
        mine, shown = [row for row in made["rows"] if (row["machine"], row["batch_norm"]) == (machine, "own")], []
        for (name, scaling), group in itertools.groupby(mine, lambda row: (row["network"], row["scaling"])):
            found = {row["devices"]: lead(row) for row in group}
            shown.append([name, scaling, *(markdown.shown(found.get(n), ".2f") for n in DEVICES)])
        tables.append(f"{machine}:\n\n{markdown.table(['network', '', *(f'{n} devices' for n in DEVICES)], shown)}")
    return "\n\n".join(tables)


def run(call: Call, kernels: float = 1.0, networks: str = ",".join(BATCHES)) -> Iterator[Json]:
    """The JSON at the end."""
    rows = []
    for name, machine in itertools.product(networks.split(","), (h100(kernels), tpu_v5p(kernels))):
        for fixed, devices in itertools.product(BATCHES[name], DEVICES):
            if (batch := fixed or PER_DEVICE * devices) >= devices:
                scaling = f"batch {fixed}" if fixed else f"{PER_DEVICE} examples a device"
                rows.append({"scaling": scaling} | compare(name, machine, batch, devices))
    assumed = {"flops": FLOPS, "memory": MEMORY, "link": LINK, "kernels": kernels}
    yield {"hardware": "none: predictions", "assumed": assumed, "rows": rows}


EXPERIMENT = Experiment(run, out="scale", show=large, tables={"large": Table(large, ("scale",))})
