"""A process that compiles steps and times them when told to by `harness.worker`, with as many CPU devices as told."""

import os
import statistics
import sys
import time
from typing import Any

import jax

from experiments.harness.rows import load
from experiments.harness.worker import Json, serve
from experiments.speed.parts import Parts, link
from lpjax.cost import balance
from lpjax.cost.timing import Program, UnitTimer, interleaved, random_batch, stopwatch
from lpjax.data.batch import Batch
from lpjax.nn.count import chain_size
from lpjax.parallel.platform import provide_devices
from lpjax.training import run as runs
from lpjax.training.run import Run


class Worker:
    """Runs that are ready, by name, and timers of units."""

    def __init__(self) -> None:
        self.ready, self.compiled = dict[str, tuple[Run, Any, Batch]](), 0
        self.timers, self.programs = dict[UnitTimer, UnitTimer](), dict[str, Program]()
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        self.compiled += event.endswith("backend_compile_duration")

    def hello(self) -> Json:
        """Where the worker runs."""
        first, count = jax.devices()[0], jax.device_count()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return {"platform": first.platform, "kind": first.device_kind, "devices": count, "cores": cores}

    def run(self, config: str, fields: Json) -> Run:
        """The run of a config file and fields."""
        return runs.prepare(load(config, {**fields, "dry_run": True}))

    def cuts(self, config: str, fields: Json, repeats: int) -> Json:
        """Balanced cuts, and the seconds that they are balanced by."""
        run = self.run(config, fields)
        timer = balance.make_timer(run.config, repeats)
        cuts, seconds = balance.measured_cuts(run.config, self.timers.setdefault(timer, timer), repeats)
        return {"cuts": cuts, "stage_seconds": seconds}

    def prepare(self, name: str, config: str, fields: Json) -> Json:
        """Compile a run's step by its first call."""
        run = self.run(config, fields)
        state, batch = run.create(), random_batch(run, run.config.batch_size, run.mesh)
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(run.step(state, batch))
        self.ready[name] = run, state, batch
        network, told = run.network, {"first_call_seconds": time.perf_counter() - start}
        told |= {"padding": network.params.waste, "parameters": chain_size(network.chain)}
        return {**told, "cuts": network.cuts, "loss": float(metrics["task_loss"])}

    def step(self, name: str, steps: int) -> Json:
        """Seconds of steps after one that is not counted, and of those that the host needed to start them."""
        run, state, batch = self.ready[name]
        state, _ = jax.block_until_ready(run.step(state, batch))  # a process that waited has lost some of its memory
        seconds, host, before = [], [], self.compiled
        for _ in range(steps):
            start = time.perf_counter()
            state, metrics = run.step(state, batch)
            host.append(time.perf_counter() - start)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
        self.ready[name] = run, state, batch
        return {"seconds": seconds, "host_seconds": host, "compiled": self.compiled - before}

    def drop(self) -> Json:
        """Forget the runs that are ready, and the parts."""
        self.ready.clear()
        self.programs.clear()
        return {}

    def parts(self, config: str, fields: Json, devices: int) -> Json:
        """Compile a step's parts on the first of so many devices along 'stage'; the step's schedule on these."""
        parts = Parts(self.run(config, fields), jax.devices()[0], devices)
        self.programs, schedule = parts.all(), parts.schedule()
        return {"schedule": schedule, "sent_bytes": sum(size for _, size in schedule["sent"])}

    def parts_seconds(self, repeats: int) -> Json:
        """Seconds of each of them, the median of as many calls, the parts taking turns."""
        timed = interleaved(list(self.programs.values()), repeats)
        return {name: statistics.median(own) for name, own in zip(self.programs, timed, strict=True)}

    def together(self, config: str, fields: Json, repeats: int) -> Json:
        """Seconds of all stages at the same time, on a device each."""
        run = self.run(config, fields)
        programs = [Parts(run, jax.devices()[k]).stage(k) for k in range(run.network.num_stages)]
        return {"seconds": statistics.median(stopwatch(lambda: [program() for program in programs], repeats=repeats))}

    link = staticmethod(link)


if __name__ == "__main__":
    provide_devices(int(sys.argv[1]))
    serve(Worker())
