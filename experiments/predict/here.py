"""This machine as the cost model sees it: its units, timed alone on one core, its memory and its links."""

import os
import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.speed.bench import INTERLEAVED
from lpjax.config.schema import Config
from lpjax.cost.machine import Link, Machine, UnitSeconds
from lpjax.cost.model import step_seconds
from lpjax.cost.timing import UnitTimer, stopwatch
from lpjax.training import run as runs

ALONE = {"NPROC": "1"} | INTERLEAVED
"""The environment that units are measured in."""


def alone_on_one_core() -> None:
    """Start `python -m experiments` again in the environment `ALONE` where it is in another one."""
    if any(os.environ.get(name) != value for name, value in ALONE.items()):
        os.execve(sys.executable, [sys.executable, "-m", "experiments", *sys.argv[1:]], os.environ | ALONE)
    jax.config.update("jax_num_cpu_devices", 8)  # of which one works: meshes of the rows are made, and not used


def measured_units(repeats: int) -> UnitSeconds:
    """Seconds of units as measured here, all beside the same first one."""
    timer = UnitTimer(repeats)

    def seconds(*unit: Any) -> tuple[float, float]:
        taken = timer(*unit)
        return taken.forward, max(0.0, taken.both - taken.forward)

    return seconds


def memory_bandwidth() -> float:
    """Bytes a second that are read or written in an update of 64 MiB."""
    x = jnp.zeros(1 << 24)
    return 2 * x.nbytes / statistics.median(stopwatch(jax.jit(lambda x: 2 * x + 1), x))


def here(units: UnitSeconds, bandwidth: float, link: Link, slower: float = 1.0) -> Machine:
    """Devices like this machine's, each slower by a factor."""
    same: Any = {"devices_per_node": 64, "inside": link, "between": link, "launch": 0.0, "start": 0.0}

    def seconds(*unit: Any) -> tuple[float, float]:
        forward, backward = units(*unit)
        return slower * forward, slower * backward

    return Machine("here", seconds, memory_bandwidth=bandwidth / slower, **same)


def predicted(config: Config, machine: Machine) -> float:
    """Seconds of a step by the model."""
    run = runs.prepare(config)
    return step_seconds(run.network, run.config, machine).total
