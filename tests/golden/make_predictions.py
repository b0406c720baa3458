"""What lpjax predicts of a step: seconds by part, bytes of memory by kind, bytes sent, bars of the drawn schedule.

    python tests/golden/make_predictions.py      writes tests/golden/predictions.json, beside it

For every method, S of 1, 2, 4, D of 1, 2, on two networks.  The redesign of the code is held to these numbers.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from lpjax.config_dict import from_config_dict
from lpjax.machine import Link, Machine, roofline
from lpjax.structure import describe

from lpjax import cost, runs, scaling, tables
from lpjax.report import schedule

MACHINE = Machine(
    "golden",
    roofline(peak_flops=1e13, memory_bandwidth=1e12, efficiency=0.4, kernel_seconds=1e-5),
    devices_per_node=2,
    inside=Link(5e-6, 2e11),
    between=Link(1e-5, 1e10),
    memory_bandwidth=1e12,
    launch=1e-4,
    start=1e-5,
)
COMMON = {"num_stages": 4, "batch_size": 64, "dry_run": True}
NETWORKS = {
    "resnet": {"model": {"depth": 14, "width": 8}},
    "wide_resnet": {
        "model": {"function": "wide_resnet", "depth": 16, "widen": 1, "dropout": 0.3},
        "data": {"name": "cifar10"},
    },
}
METHODS = {
    "serial": {"method": "serial"},
    "data_parallel": {"method": "data_parallel"},
    "pipeline": {"method": "pipeline", "pipeline": {"micro_batches": 8}},
    "fdg": {"method": "delayed"},
    "ddg": {"method": "delayed", "delayed": {"variant": "ddg"}},
    "local": {"method": "local"},
    "local, adamw": {"method": "local", "optimizer": {"name": "adamw"}, "aux_optimizer": {"name": "adamw"}},
    "none": {"method": "layer_parallel", "multiplier": "none"},
    "mean": {"method": "layer_parallel", "multiplier": "mean"},
    "per_example": {"method": "layer_parallel", "multiplier": "per_example", "data": {"crop": 0}},
    "adjoint": {"method": "layer_parallel", "multiplier": "adjoint"},
    "coarse_tail": {"method": "layer_parallel"},
    "coarse_tail, short": {"method": "layer_parallel", "aux": {"tail": 1}},
    "coarse_tail, bfloat16": {"method": "layer_parallel", "exchange": {"bfloat16": True}},
    "sweeps": {"method": "layer_parallel", "penalty": {"sweeps": 1}},
    "stale": {"method": "layer_parallel", "exchange": {"stale": True}},
    "inner_steps": {"method": "layer_parallel", "aux": {"inner_steps": 2}},
    "coarse_adjoint": {"method": "coarse_adjoint"},
    "coarse_adjoint, grid": {"method": "coarse_adjoint", "aux": {"grid": 4}},
    "coarse_adjoint, tied": {"method": "coarse_adjoint", "aux": {"grid": 4, "tied": True}},
}
MODELLED = ("none", "adjoint", "coarse_tail")


def fields(network, method, stage, data):
    values = {**COMMON, "mesh": {"stage": stage, "data": data}}
    for more in (NETWORKS[network], METHODS[method]):
        for name, value in more.items():
            values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return values


def predict(network, method, stage, data):
    config = from_config_dict(fields(network, method, stage, data))
    run = runs.prepare(config)
    traced = cost.exchanged_bytes(runs.trace(run).jaxpr, dict(run.mesh.shape))
    name = config.delayed.variant if config.method == "delayed" else config.method
    left_out = config.penalty.sweeps or config.exchange.stale or config.aux.inner_steps > 1
    seconds = model = None
    if config.multiplier in MODELLED and not left_out:
        options = {
            "batch": config.batch_size,
            "stage": stage,
            "data": data,
            "micro_batches": config.pipeline.micro_batches,
            "policy": config.multiplier,
            "tail": config.aux.tail,
        }
        width = 2 if config.exchange.bfloat16 else 4
        seconds = asdict(scaling.step_seconds(name, run.network, MACHINE, **options, exchange_bytes=width))
        model = scaling.memory_bytes(name, run.network, **options)
    drawn = schedule.make(json.loads(json.dumps(describe(run.network, config))), None)
    return {
        "seconds": seconds,
        "memory": tables.device_bytes(run.network, config, run.spec.num_train),
        "memory_model": model,
        "sent": traced,
        "bars": [[bar.device, bar.start, bar.length, bar.kind] for bar in drawn.bars],
    }


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    found = {}
    for network in NETWORKS:
        for method in METHODS:
            for stage in (1, 2, 4):
                for data in (1, 2):
                    if method == "serial" and (stage, data) != (1, 1):
                        continue
                    name = f"{network} / {method} / {stage} x {data}"
                    found[name] = predict(network, method, stage, data)
                    print(name, flush=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rounded(row))}" for name, row in found.items())
    Path(__file__).with_name("predictions.json").write_text(f"{{\n{lines}\n}}\n")
