"""What `speedup` measures, the processes in which it does, and what becomes of their seconds."""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.harness.experiment import Json
from experiments.harness.rows import fields_of
from experiments.harness.stats import medians, spread
from experiments.harness.worker import Process, interleaved
from experiments.speed.prediction import prediction
from lpjax.methods import METHODS

WORKER = "experiments.speed.worker"

LARGE_PAGES = "glibc.malloc.hugetlb=1"

NOTHING_RETURNED = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""What is freed is not given back to the system.  One arena: others than the main thread's keep no large arrays."""

RECOMMENDED = {"GLIBC_TUNABLES": LARGE_PAGES} if sys.platform == "linux" else {}
"""Environment of processes that time steps.  The arrays of a step are new in each, and large pages make fewer page
faults of them."""

INTERLEAVED = {"GLIBC_TUNABLES": f"{LARGE_PAGES}:{NOTHING_RETURNED}"} if RECOMMENDED else {}
"""Of those where programs of one device take turns: none is to pay for memory that another one gave back."""


def measured_row(answers: list[Json], serial: list[Json]) -> Json:
    """Seconds, rho paired by round, and what the host took, of a row's answers."""
    own, base = ([statistics.median(answer["seconds"]) for answer in given] for given in (answers, serial))
    return {
        "seconds": spread([value for answer in answers for value in answer["seconds"]]),
        "rho": spread([b / o for b, o in zip(base, own, strict=True)]),
        "host_seconds": statistics.median(value for answer in answers for value in answer["host_seconds"]),
        "compiled": sum(answer["compiled"] for answer in answers),
    }


@dataclass(frozen=True)
class Workers:
    """Processes to time in.

    Attributes:
      many: Has all devices.
      one: A device, on CPUs a core.
      apart: Likewise.
      default: One device, and what else the environment gives it.
    """

    many: Process
    one: Process
    apart: Process
    default: Process


@dataclass(frozen=True)
class Ready:
    """A row that is compiled.

    Attributes:
      row: What the JSON says of it.
      process: Where it is.
    """

    row: Json
    process: Process


class Bench:
    """The configuration that is measured, and where."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Look at this machine's devices."""
        self.args, self.config = args, str(args.config)
        self.environment = {} if args.plain else RECOMMENDED
        self.stages = [int(K) for K in args.stages.split(",")]
        probe = Process(max(self.stages), self.environment, WORKER)
        self.where = probe.ask("hello")
        self.cpu = self.where["platform"] == "cpu"
        self.available = self.where["cores"] if self.cpu else self.where["devices"]
        self.processes = args.processes if self.cpu else 1
        self.one_core = self.environment | ({"NPROC": "1"} if self.cpu else {})
        self.apart = self.one_core | (INTERLEAVED if self.environment else {})
        if self.cpu:  # a device is a core
            probe.close()
            probe = Process(1, self.apart, WORKER)
        self.kept = probe
        self.cuts: dict[tuple[str, int], list[int]] = {}

    @contextlib.contextmanager
    def workers(self) -> Iterator[Workers]:
        """On CPUs new processes, elsewhere the one that is kept, which has all devices."""
        if not self.cpu:
            yield Workers(self.kept, self.kept, self.kept, self.kept)
            return
        many = min(max(self.stages), self.available)
        asked = (many, self.environment), (1, self.one_core), (1, self.apart), (1, self.environment)
        made = [Process(devices, environment, WORKER) for devices, environment in asked]
        try:
            yield Workers(*made)
        finally:
            for process in made:
                process.close()

    def fields(self, row: str, num_stages: int) -> Json:
        """Of a row's configuration, with its cuts, which are measured once; a device that holds all needs none."""
        fields = {**fields_of(row), **self.args.fields, "num_stages": num_stages}
        if self.args.cuts == "even" or not METHODS[fields["method"]].staged:
            return fields
        if (row, num_stages) not in self.cuts:
            asked = {"config": self.config, "fields": {**fields, "mesh.stage": 1}, "repeats": self.args.repeats}
            self.cuts[row, num_stages] = self.kept.ask("cuts", **asked)["cuts"]
        return fields | {"cuts": self.cuts[row, num_stages]}

    def prepared(self, workers: Workers, row: str, num_stages: int) -> dict[str, Ready]:
        """A row ready to be timed, serial in each of its environments, by name."""
        fields = self.fields(row, num_stages)
        where = {row: workers.one if row == "serial" else workers.many}
        if row == "serial" and self.cpu:
            where["serial_default"] = workers.default
        ready = {}
        for name, process in where.items():
            found = process.ask("prepare", name=name, config=self.config, fields=fields)
            ready[name] = Ready({"row": name, "stages": num_stages, "fields": fields, **found}, process)
        return ready

    def timed(self, ready: dict[str, Ready]) -> dict[str, list[Json]]:
        """The answers of each row that is ready, timed in turns, and dropped."""
        turns = {name: (own.process, name) for name, own in ready.items()}
        answers = interleaved(turns, self.args.rounds, self.args.steps)
        for process in {own.process for own in ready.values()}:
            process.ask("drop")
        return answers

    def parts(self, fields: Json, num_stages: int) -> tuple[Json, Json]:
        """The schedule of a step, and seconds of its parts and of serial's step.

        Args:
          fields: Of the configuration.
          num_stages: K.

        Returns:
          The schedule, see `prediction.schedule_of`, and seconds by name.  stages: [K].  together: all stages at the
          same time, where there are devices for them.
        """
        repeats, single = self.args.repeats, {"config": self.config, "fields": {**fields, "mesh.stage": 1}}
        with self.workers() as workers:
            parts = workers.apart.ask("parts", **single, devices=num_stages)
            workers.one.ask("prepare", name="serial", config=self.config, fields=self.fields("serial", 1))
            seconds = workers.apart.ask("parts_seconds", repeats=repeats)
            parts["serial"] = statistics.median(workers.one.ask("step", name="serial", steps=repeats)["seconds"])
            for process in (workers.apart, workers.one):
                process.ask("drop")
            if num_stages <= self.available:
                parts["together"] = workers.many.ask("together", **single, repeats=repeats)["seconds"]
        parts["stages"] = [seconds.pop(f"stage {k}") for k in range(num_stages)]
        return parts.pop("schedule"), parts | seconds

    def predicted(self, row: str, num_stages: int, link: Json | None) -> Json:
        """A row's prediction from its parts."""
        fields = self.fields(row, num_stages)
        found = [self.parts(fields, num_stages) for _ in range(self.processes)]
        schedule, timed = found[0][0], [parts for _, parts in found]
        parts = medians(timed)
        made = prediction(schedule, parts, link)
        if "together" in parts:
            made["contention"] = parts["together"] / max(parts["stages"])
            made["rho_contended"] = made["rho"] / max(1.0, made["contention"])
        made["by_process"] = [
            {"stages": own["stages"], "serial": own["serial"], "rho": prediction(schedule, own, link)["rho"]}
            for own in timed
        ]
        return {"row": row, "stages": num_stages, "fields": fields, "parts": parts, **made}
