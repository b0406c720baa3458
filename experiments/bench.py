"""The configuration that `experiments.speedup` measures, and the processes in which it does."""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.compare import row_fields
from experiments.processes import IN_TURNS, RECOMMENDED, Process, interleaved, medians
from experiments.step_prediction import prediction
from lpjax.methods import METHODS

Json = dict[str, Any]


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
          The schedule, see `step_prediction.schedule_of`, and seconds by name.  stages: [K].  stages_forward: likewise,
          where the step has forward passes alone.  together: all stages at the same time, where there are devices for
          them.
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
        if "forward 0" in seconds:
            parts["stages_forward"] = [seconds.pop(f"forward {k}") for k in range(num_stages)]
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
