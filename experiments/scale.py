"""What layer-parallel training, data parallelism and the pipeline would take on machines of up to 1,024 devices.

    python -m experiments.scale [--kernels=1] [--out=experiments/results/scale.json]

Predictions of `lpjax.scaling`, nothing is run.  For each network, batch and number of devices: the fastest mesh (S x D,
K = S) of each method that fits into a device's memory; layer-parallel with the full coarse tail or a short one and
three widths of the AuxNet, the pipeline with its best number of micro-batches.  Speed alone: accuracy is another table.
A batch is the whole machine's: 128 images give at most 128 devices one each.  Half a minute on one core.
"""

import argparse
import datetime
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.digits_policies import commit
from lpjax import network, tables
from lpjax.chain import Shape, Unit, make_chain
from lpjax.metrics import write_json
from lpjax.models.imagenet_resnet import imagenet_resnet
from lpjax.models.preact_resnet import wide_resnet
from lpjax.models.resnet import resnet
from lpjax.network import Network
from lpjax.partition import even_cuts
from lpjax.scaling import Link, Machine, StepSeconds, memory_bytes, roofline, step_seconds

NETWORKS: dict[str, tuple[tuple[Unit, ...], Shape]] = {
    "ResNet-110": (resnet(depth=110, width=16, classes=10), (32, 32, 3)),
    "ResNet-1202": (resnet(depth=1202, width=16, classes=10), (32, 32, 3)),
    "WRN-28-10": (wide_resnet(depth=28, widen=10, classes=10), (32, 32, 3)),
    "ResNet-152": (imagenet_resnet(depth=152, classes=1000), (224, 224, 3)),
}

CIFAR_BATCHES: tuple[int | None, ...] = (128, 1024)
BATCHES: dict[str, tuple[int | None, ...]] = dict.fromkeys(NETWORKS, CIFAR_BATCHES) | {"ResNet-152": (256, 8192, None)}
"""Examples of a step; None: `PER_DEVICE` for each device (weak scaling).  8,192: the most that cost no accuracy in
arXiv:1706.02677."""

PER_DEVICE = 32
DEVICES = (4, 8, 16, 64, 256, 1024)
MICRO_BATCHES = (2, 4, 8, 16, 32)
WIDTHS = (0.25, 0.5, 1.0)
"""Of the AuxNet.  Below 1 a piece has two convolutions more, to fewer channels and back: less to compute, more kernels."""

FLOPS, MEMORY, LINK = 0.4, 0.6, 0.8
"""Assumed shares of the peak.  An A100 then takes 2,800 images a second of ResNet-50; 2,600 were measured
(github.com/huggingface/pytorch-image-models/issues/1491)."""


def h100(kernels: float) -> Machine:
    """DGX H100s of eight GPUs; `kernels` scales the seconds of kernels.

    NVIDIA H100 SXM5 data sheet: 989 TFLOP/s bfloat16 (dense), 3.35 TB/s, 80 GB, NVLink 900 GB/s, both directions
    together.  DGX H100 data sheet: a network card of 400 Gb/s a GPU.  nccl/src/graph/tuning.cc, protocol LL: a
    collective takes 6.6 us, an NVLink hop 0.6 us, a network hop 5 us.
    Assumed: four kernels of 2.5 us a layer; 3.4 us more a collective, for its launch; 50 us of the host a step.
    """
    return Machine(
        "H100",
        roofline(
            peak_flops=989e12,
            memory_bandwidth=MEMORY * 3.35e12,
            efficiency=FLOPS,
            kernel_seconds=kernels * 10e-6,
            dtype="bfloat16",
        ),
        devices_per_node=8,
        inside=Link(0.6e-6, LINK * 450e9),
        between=Link(5e-6, LINK * 50e9),
        memory_bandwidth=MEMORY * 3.35e12,
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
    return Machine(
        "TPU v5p",
        roofline(
            peak_flops=459e12,
            memory_bandwidth=MEMORY * 2.765e12,
            efficiency=FLOPS,
            kernel_seconds=kernels * 3e-6,
            dtype="bfloat16",
        ),
        devices_per_node=8960,
        inside=link,
        between=link,
        memory_bandwidth=MEMORY * 2.765e12,
        launch=20e-6,
        start=2e-6,
    )


Axis = Literal["data", "stage"]
AXES: tuple[Axis, ...] = ("data", "stage")
RIVALS = ("layer_parallel", "data_parallel", "pipeline")
CAPACITY = {"H100": 80e9, "TPU v5p": 95e9}
"""Bytes of a device's memory."""


@functools.cache
def build(name: str, num_stages: int, width: float = WIDTHS[0]) -> Network:
    """A network cut evenly by the seconds of `PER_DEVICE` examples on an H100."""
    units, shape = NETWORKS[name]
    unit_seconds, chain = h100(1).unit_seconds, make_chain(units, shape)
    costs = [sum(unit_seconds(*unit, PER_DEVICE)) for unit in zip(units, chain.shapes[:-1], strict=True)]
    cuts, tail = even_cuts(costs, num_stages), 1
    arguments: dict[str, Any] = {"num_stages": num_stages, "cuts": cuts, "dtype": "bfloat16"}
    return network.build(units, shape, **arguments, aux_blocks=1, aux_width=width, aux_tail=tail)


@dataclass(frozen=True)
class Choice:
    """A method on a mesh (S, D).  how: its options in words.  seconds: of a step.  memory: () -> bytes of a device."""

    method: str
    mesh: tuple[int, int]
    how: str
    seconds: StepSeconds
    memory: Callable[[], int]

    def row(self, serial: float) -> dict[str, Any]:
        """For the JSON file; serial: seconds on one device."""
        parts, options = asdict(self.seconds), {"mesh": self.mesh, "how": self.how, "memory_bytes": self.memory()}
        return {"speedup": serial / self.seconds.total, "seconds": self.seconds.total} | options | {"parts": parts}


def choices(name: str, machine: Machine, batch: int, devices: int) -> Iterator[Choice]:
    """The methods on all meshes of so many devices."""

    def choice(
        method: str, network: Network, stage: int, how: str = "", adjacent: Axis = "data", **options: Any
    ) -> Choice:
        mesh: dict[str, Any] = {"batch": batch, "stage": stage, "data": devices // stage} | options
        seconds = step_seconds(method, network, machine, **mesh, adjacent=adjacent)
        return Choice(
            method,
            (stage, devices // stage),
            how + (", stages in a node" if adjacent == "stage" else ""),
            seconds,
            functools.partial(memory_bytes, method, network, **mesh),
        )

    yield choice("data_parallel", build(name, 1), 1)
    for S in (2**i for i in range(1, 7) if 2**i <= min(devices, len(NETWORKS[name][0]))):
        for adjacent in AXES if devices > machine.devices_per_node else AXES[:1]:
            for method in ("fdg", "local"):
                yield choice(method, build(name, S), S, adjacent=adjacent)
            for M in (M for M in MICRO_BATCHES if batch * S // devices % M == 0):
                yield choice("pipeline", build(name, S), S, f"M {M}", adjacent, micro_batches=M)
            for width, tail in itertools.product(WIDTHS, (None, 1)):
                how = f"tail {tail or 'full'}, width {width:g}"
                yield choice("layer_parallel", build(name, S, width), S, how, adjacent, tail=tail)


def compare(name: str, machine: Machine, batch: int, devices: int) -> dict[str, Any]:
    """The row of a case: each method's fastest choice that fits.

    serial: on one device, which need not have the memory.  data_parallel_free: data parallelism whose collectives take
    no time, a bound for whatever hides or avoids them.  winner: among layer_parallel, data_parallel, pipeline.
    """
    serial = step_seconds("serial", build(name, 1), machine, batch=batch, stage=1, data=1).total
    found: dict[str, Any] = {}
    for choice in sorted(choices(name, machine, batch, devices), key=lambda choice: choice.seconds.total):
        if choice.method not in found and choice.memory() <= CAPACITY[machine.name]:
            found[choice.method] = choice.row(serial)
    if "data_parallel" in found:
        parts = found["data_parallel"]["parts"]
        free = found["data_parallel"]["seconds"] - parts["batch_norm"] - parts["gradients"]
        found["data_parallel_free"] = {"speedup": serial / free, "seconds": free}
    return {
        "network": name,
        "machine": machine.name,
        "batch": batch,
        "devices": devices,
        "serial_seconds": serial,
        "winner": max((m for m in RIVALS if m in found), key=lambda m: found[m]["speedup"], default=None),
        "methods": found,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Speed-ups against one device."""
    lines = [
        "| network | batch | machine | devices | layer-parallel | data-parallel | its collectives free | pipeline "
        "| fdg | local | fastest of lp, dp, pipeline |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for method in ("layer_parallel", "data_parallel", "data_parallel_free", "pipeline", "fdg", "local"):
            found = row["methods"].get(method)
            how = f" ({found['mesh'][0]} x {found['mesh'][1]}, {found['how']})" if found and found.get("how") else ""
            cells.append(f"{found['speedup']:.1f}{how}" if found else "does not fit")
        case = row["network"], str(row["batch"]), row["machine"], str(row["devices"])
        lines.append(f"| {' | '.join([*case, *cells, row['winner'] or 'none'])} |")
    return "\n".join(lines)


def regimes(rows: list[dict[str, Any]]) -> list[str]:
    """In words, from the numbers: where layer-parallel is faster than data parallelism and the pipeline."""
    lines = []
    for (name, machine, scaling), group in itertools.groupby(
        rows, lambda row: (row["network"], row["machine"], row["scaling"])
    ):
        margins = {row["devices"]: (margin(row, RIVALS), margin(row, (*RIVALS, "data_parallel_free"))) for row in group}
        wins = [n for n, (ahead, _) in margins.items() if ahead > 1]
        sure = [n for n, (_, ahead) in margins.items() if ahead > 1]
        best = max(margins, key=lambda n: margins[n][0])
        verdict = f"fastest on {_listed(wins)} devices" if wins else "never the fastest"
        verdict += f", at its best {margins[best][0]:.2f} times the next one's speed ({best} devices)"
        verdict += (
            f"; on {_listed(sure)} even if data parallelism's collectives took no time"
            if sure
            else ("; nowhere if data parallelism's collectives took no time")
        )
        lines.append(f"{name}, {scaling}, {machine}: layer-parallel is {verdict}.")
    return lines


def margin(row: dict[str, Any], rivals: tuple[str, ...]) -> float:
    """Speed of layer-parallel over that of the fastest rival."""
    speed = {method: found["speedup"] for method, found in row["methods"].items()}
    others = max((speed[method] for method in rivals if method != "layer_parallel" and method in speed), default=0.0)
    return speed.get("layer_parallel", 0.0) / others if others else float("inf")


def _listed(devices: list[int]) -> str:
    return ", ".join(map(str, devices))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=float, default=1.0, help="factor on the assumed seconds of kernels")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/scale.json"))
    args = parser.parse_args()
    rows = []
    for (name, batches), make in itertools.product(BATCHES.items(), (h100, tpu_v5p)):
        machine = make(args.kernels)
        for fixed, devices in itertools.product(batches, DEVICES):
            batch = fixed or PER_DEVICE * devices
            scaling = f"batch {fixed}" if fixed else f"{PER_DEVICE} examples a device"
            if batch >= devices:
                rows.append({"scaling": scaling} | compare(name, machine, batch, devices))
    header = {
        "command": "python -m experiments.scale " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": "none: predicted",
        "assumed": {"flops": FLOPS, "memory": MEMORY, "link": LINK, "kernels": args.kernels},
        "versions": tables.versions(),
    }
    write_json(args.out, header | {"regimes": regimes(rows), "rows": rows})
    print(markdown(rows), *regimes(rows), sep="\n")


if __name__ == "__main__":
    main()
