"""What `speedup` measures, the processes in which it does, and what becomes of their seconds."""

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


Workers = tuple[Process, Process, Process]
"""To time in: one with all devices, and two with one (on CPUs a core) each, the last for programs that take turns."""


@dataclass
class Bench:
    """What is measured, how often, and where; even: cuts by FLOPs."""

    config: str
    own_fields: Json
    stages: list[int]
    rounds: int
    steps: int
    repeats: int
    processes: int
    even: bool

    def __post_init__(self) -> None:
        """Look at this machine's devices."""
        probe = Process(max(self.stages), RECOMMENDED, WORKER)
        self.where, self.cuts = probe.ask("hello"), dict[tuple[str, int], list[int]]()
        self.cpu = self.where["platform"] == "cpu"  # where a device is a core
        self.available = self.where["cores"] if self.cpu else self.where["devices"]
        self.processes = self.processes if self.cpu else 1
        self.one_core = RECOMMENDED | ({"NPROC": "1"} if self.cpu else {})
        self.apart, self.kept = self.one_core | INTERLEAVED, probe
        if self.cpu:
            probe.close()
            self.kept = Process(1, self.apart, WORKER)

    @contextlib.contextmanager
    def workers(self) -> Iterator[Workers]:
        """On CPUs new processes, elsewhere the one that is kept, which has all devices."""
        if not self.cpu:
            yield self.kept, self.kept, self.kept
            return
        count = min(max(self.stages), self.available)
        asked = (count, RECOMMENDED), (1, self.one_core), (1, self.apart)
        many, one, apart = (Process(count, environment, WORKER) for count, environment in asked)
        try:
            yield many, one, apart
        finally:
            for process in (many, one, apart):
                process.close()

    def fields(self, row: str, num_stages: int) -> Json:
        """Of a row's configuration, with its cuts, which are measured once; a device that holds all needs none."""
        fields = {**fields_of(row), **self.own_fields, "num_stages": num_stages}
        if self.even or not METHODS[fields["method"]].staged:
            return fields
        if (row, num_stages) not in self.cuts:
            asked = {"config": self.config, "fields": {**fields, "mesh.stage": 1}}
            self.cuts[row, num_stages] = self.kept.ask("cuts", **asked, repeats=self.repeats)["cuts"]
        return fields | {"cuts": self.cuts[row, num_stages]}

    def prepared(self, workers: Workers, row: str, num_stages: int) -> tuple[Process, Json]:
        """A row ready to be timed: where, and what the JSON says of it."""
        process, fields = workers[row == "serial"], self.fields(row, num_stages)  # the first or the second
        found = process.ask("prepare", name=row, config=self.config, fields=fields)
        return process, {"row": row, "stages": num_stages, "fields": fields, **found}

    def timed(self, ready: dict[str, tuple[Process, Json]]) -> dict[str, list[Json]]:
        """The answers of each row that is ready, timed in turns, and dropped."""
        turns = {name: (process, name) for name, (process, _) in ready.items()}
        answers = interleaved(turns, self.rounds, self.steps)
        for process in {process for process, _ in ready.values()}:
            process.ask("drop")
        return answers

    def parts(self, fields: Json, num_stages: int) -> tuple[Json, Json]:
        """`prediction.schedule_of` a step, and seconds of its parts, of serial's step, and, where there are devices for
        them, of all stages at the same time (together)."""
        single: Json = {"config": self.config, "fields": {**fields, "mesh.stage": 1}}
        with self.workers() as (many, one, apart):
            parts = apart.ask("parts", **single, devices=num_stages)
            one.ask("prepare", name="serial", config=self.config, fields=self.fields("serial", 1))
            seconds = apart.ask("parts_seconds", repeats=self.repeats)
            parts["serial"] = statistics.median(one.ask("step", name="serial", steps=self.repeats)["seconds"])
            for process in (apart, one):
                process.ask("drop")
            if num_stages <= self.available:
                parts["together"] = many.ask("together", **single, repeats=self.repeats)["seconds"]
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
        alone = [prediction(schedule, own, link)["rho"] for own in timed]
        made["by_process"] = [{"rho": rho, "serial": own["serial"]} for own, rho in zip(timed, alone, strict=True)]
        return {"row": row, "stages": num_stages, "fields": fields, "parts": parts, **made}
