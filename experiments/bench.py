"""What `experiments.speedup` measures, the processes in which it does, and what becomes of their seconds.

`experiments.worker` is a process's other end.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.compare import row_fields
from experiments.step_prediction import Json, prediction
from lpjax.methods import METHODS

LARGE_PAGES = "glibc.malloc.hugetlb=1"

KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""What is freed is not given back to the system.  One arena: others than the main thread's keep no large arrays."""

RECOMMENDED = {"GLIBC_TUNABLES": LARGE_PAGES}
"""Environment of processes on Linux that time steps.  The arrays of a step are new in each, and large pages make fewer
page faults of them."""

IN_TURNS = {"GLIBC_TUNABLES": f"{LARGE_PAGES}:{KEPT}"}
"""Of those where programs of one device take turns: none is to pay for memory that another one gave back."""


class Process:
    """A worker in an environment of its own; see `experiments.speedup_worker`."""

    def __init__(
        self, devices: int, environment: dict[str, str], module: str = "experiments.speedup_worker", python: str = ""
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", module, str(devices)],
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> Json:
        """The answer to a command.  Raises RuntimeError where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with code {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{do} {request}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def interleaved(turns: dict[str, tuple[Process, str]], rounds: int, steps: int) -> dict[str, list[Json]]:
    """Answers of each name's steps, a list by round.  turns: the process and the run's name there."""
    answers: dict[str, list[Json]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, (process, run) in turns.items():
            answers[name].append(process.ask("step", name=run, steps=steps))
    return answers


def measured_row(answers: list[Json], serial: list[Json]) -> Json:
    """Seconds, rho paired by round, and what the host took, of a name's answers."""
    own = [statistics.median(answer["seconds"]) for answer in answers]
    base = [statistics.median(answer["seconds"]) for answer in serial]
    host = [value for answer in answers for value in answer["host_seconds"]]
    return {
        "seconds": spread([value for answer in answers for value in answer["seconds"]]),
        "rho": spread([b / o for b, o in zip(base, own, strict=True)]),
        "host_seconds": statistics.median(host),
        "compiled": sum(answer["compiled"] for answer in answers),
    }


def medians(timed: list[Json]) -> Json:
    """Of each name over the processes; of a list's elements one by one."""

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [statistics.median(own) for own in zip(*values, strict=True)]
        return statistics.median(values)

    return {name: median([own[name] for own in timed]) for name in timed[0]}


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


class Bench:
    """The configuration that is measured, and where."""

    def __init__(self, args: argparse.Namespace, extra: Json) -> None:
        self.args, self.extra = args, extra
        self.environment = {} if args.plain or sys.platform != "linux" else RECOMMENDED
        self.stages = [int(K) for K in args.stages.split(",")]
        probe = Process(max(self.stages), self.environment)
        self.where = probe.ask("hello")
        self.cpu = self.where["platform"] == "cpu"
        self.available = self.where["cores"] if self.cpu else self.where["devices"]
        self.processes = args.processes if self.cpu else 1
        self.one_core = self.environment | ({"NPROC": "1"} if self.cpu else {})
        self.in_turns = self.one_core | (IN_TURNS if self.environment else {})
        if self.cpu:  # a device is a core
            probe.close()
            probe = Process(1, self.in_turns)
        self.kept = probe
        self.cuts: dict[tuple[str, int], list[int]] = {}

    @contextlib.contextmanager
    def workers(self) -> Iterator[Workers]:
        """On CPUs new processes, elsewhere the one that is kept, which has all devices."""
        if not self.cpu:
            yield Workers(self.kept, self.kept, self.kept, self.kept)
            return
        made = Workers(
            Process(min(max(self.stages), self.available), self.environment),
            Process(1, self.one_core),
            Process(1, self.in_turns),
            Process(1, self.environment),
        )
        try:
            yield made
        finally:
            for process in (made.many, made.one, made.apart, made.default):
                process.close()

    def fields(self, row: str, num_stages: int) -> Json:
        """Of a row's configuration, with its cuts, which are measured once; a device that holds all needs none."""
        config, repeats = str(self.args.config), self.args.repeats
        fields = {**row_fields(row, num_stages, 1), **self.extra}
        if self.args.cuts == "even" or not METHODS[fields["method"]].staged:
            return fields
        if (row, num_stages) not in self.cuts:
            single = {**fields, "mesh.stage": 1}
            self.cuts[row, num_stages] = self.kept.ask("cuts", config=config, fields=single, repeats=repeats)["cuts"]
        return fields | {"cuts": self.cuts[row, num_stages]}

    def prepared(self, workers: Workers, row: str, num_stages: int) -> dict[str, tuple[Process, Json]]:
        """A row ready to be timed, serial in each of its environments: by name, where it is, and of what kind."""
        fields = self.fields(row, num_stages)
        where = {row: workers.one if row == "serial" else workers.many}
        if row == "serial" and self.cpu:
            where["serial_default"] = workers.default
        ready = {
            name: process.ask("prepare", name=name, config=str(self.args.config), fields=fields)
            for name, process in where.items()
        }
        return {
            name: (where[name], {"row": name, "stages": num_stages, "fields": fields, **ready[name]}) for name in where
        }

    def timed(self, ready: dict[str, tuple[Process, Json]]) -> list[tuple[Json, list[Json], list[Json]]]:
        """Of the rows that are ready, timed in turns beside serial, and dropped: each, its answers, and serial's."""
        turns = {name: (process, name) for name, (process, _) in ready.items()}
        answers = interleaved(turns, self.args.rounds, self.args.steps)
        for process in {process for process, _ in ready.values()}:
            process.ask("drop")
        return [(row, answers[name], answers["serial"]) for name, (_, row) in ready.items()]

    def parts(self, fields: Json, num_stages: int) -> tuple[Json, Json]:
        """The schedule of a step, and seconds of its parts and of serial's step.

        Args:
          fields: Of the configuration.
          num_stages: K.

        Returns:
          The schedule, see `step_prediction.schedule_of`, and seconds by name.  stages: [K].  together: all stages at
          the same time, where there are devices for them.
        """
        config, repeats = str(self.args.config), self.args.repeats
        single = {**fields, "mesh.stage": 1}
        with self.workers() as workers:
            parts = workers.apart.ask("parts", config=config, fields=single, devices=num_stages)
            workers.one.ask("prepare", name="serial", config=config, fields=self.fields("serial", 1))
            seconds = workers.apart.ask("parts_seconds", repeats=repeats)
            parts["serial"] = statistics.median(workers.one.ask("step", name="serial", steps=repeats)["seconds"])
            for process in (workers.apart, workers.one):
                process.ask("drop")
            if num_stages <= self.available:
                asked = workers.many.ask("together", config=config, fields=single, repeats=repeats)
                parts["together"] = asked["seconds"]
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
