"""Speed-up of methods over backprop on one device: measured, and predicted from the parts of a step.

The images are noise.  Where there are devices (on CPUs: cores) for K stages each row's step is timed, the rows taking
turns (`rounds` times `steps` steps each), and rho = seconds of serial on one device / its own, paired by round.

Where a method has a stage's program all parts of a step are timed alone on one device, for every K, and beside them the
whole step of serial.  With what links take they predict rho:

    predicted  seconds of serial / end of the method's schedule
    contended  where devices share memory and clock: all takes as much longer as the stages take at the same time
    Eq. 27     (T_d + T_f + T_b) / (T_d + t_psi + T_AuxNet + (T_f + T_b) / K)     of arXiv:2112.05387, a serial AuxNet;
               T of the whole network and batch

not stages: what of the predicted step is something else.  imbalance: by how much the dearest stage is over the mean.
On CPUs the same program takes more or less time in another process, by a fifth and more, so all is done `processes`
times in new ones, and a part counts with its median over these; in brackets what one process alone predicts.
"""

import contextlib
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.harness import markdown
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import fields_of, load
from experiments.harness.stats import medians, spread
from experiments.harness.worker import Process, interleaved
from experiments.speed.prediction import prediction
from lpjax.methods import METHODS

WORKER = "experiments.speed.worker"

LARGE_PAGES = "glibc.malloc.hugetlb=1"
NONE_RETURNED = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
RECOMMENDED = {"GLIBC_TUNABLES": LARGE_PAGES} if sys.platform == "linux" else {}
INTERLEAVED = {"GLIBC_TUNABLES": f"{LARGE_PAGES}:{NONE_RETURNED}"} if RECOMMENDED else {}
"""Environments of processes that time steps, whose arrays are new in each step: large pages make fewer page faults of
them.  Where programs of one device take turns none is to pay for memory that another one gave back, so none does."""


def measured_row(answers: list[Json], serial: list[Json]) -> Json:
    """Seconds, rho paired by round, and what the host took, of a row's answers."""
    own, base = ([statistics.median(answer["seconds"]) for answer in given] for given in (answers, serial))
    return {
        "seconds": spread([value for answer in answers for value in answer["seconds"]]),
        "rho": spread([b / o for b, o in zip(base, own, strict=True)]),
        "host_seconds": statistics.median(value for answer in answers for value in answer["host_seconds"]),
        "compiled": sum(answer["compiled"] for answer in answers),
    }


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
            self.kept = Process(max(self.stages), self.apart, WORKER)  # devices of one core

    @contextlib.contextmanager
    def workers(self) -> Iterator[Sequence[Process]]:
        """One with all devices, two with one (a core) each: new ones on CPUs, elsewhere the one that is kept."""
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
        if "aux.grid" in fields:  # in words
            fields["aux.grid"] = load(self.config, {**fields, "dry_run": True}).aux.grid
        if self.even or not METHODS[fields["method"]].staged:
            return fields
        if (row, num_stages) not in self.cuts:
            asked = {"config": self.config, "fields": fields, "repeats": self.repeats}
            self.cuts[row, num_stages] = self.kept.ask("cuts", **asked)["cuts"]
        return fields | {"cuts": self.cuts[row, num_stages]}

    def prepared(self, workers: Sequence[Process], row: str, num_stages: int) -> tuple[Process, Json]:
        """A row ready to be timed: where, and what the JSON says of it."""
        many, one, _ = workers
        process, fields = one if row == "serial" else many, self.fields(row, num_stages)
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


def run(
    call: Call, rows: str = "serial;data_parallel;pipeline;fdg;local;coarse_tail;coarse_adjoint", stages: str = "2,4,8",
    rounds: int = 2, steps: int = 2, repeats: int = 5, processes: int = 3, even: bool = False,
) -> Iterator[Json]:  # fmt: skip
    """The JSON after every part."""
    names = list(dict.fromkeys(["serial", *rows.split(";")]))
    with_parts = [name for name in names if METHODS[fields_of(name)["method"]].stage_program is not None]
    every = list(map(int, stages.split(",")))
    bench = Bench(call.config, call.fields, every, rounds, steps, repeats, processes, even)
    made: Json = {"config": call.config, "overrides": call.fields, "rounds": rounds, "steps": steps, "link": None}
    made |= {"where": bench.where, "environment": RECOMMENDED, "environment_of_parts": bench.apart}
    made |= {"processes": bench.processes, "measured": [], "predictions": [], "failed": []}
    for K in (K for K in every if bench.available >= K):
        yield from measured(bench, names, K, made)
    if with_parts and (count := min(max(every), bench.available)) > 1:
        with bench.workers() as (many, _, _):
            made["link"] = many.ask("link", count=count, repeats=repeats)
    for row, K in itertools.product(with_parts, every):
        found = attempt(made, f"parts of {row}, K = {K}", partial(bench.predicted, row, K, made["link"]))
        made["predictions"] += [found] if found else []
        yield made
    bench.kept.close()
    yield made


def attempt(made: Json, what: str, work: Callable[[], Any]) -> Any:
    """What a part of the work gives; a failure is told, and None."""
    print(what, flush=True)
    try:
        return work()
    except RuntimeError as error:
        made["failed"].append({"what": what, "error": str(error)})
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return None


def measured(bench: Bench, names: list[str], K: int, made: Json) -> Iterator[Json]:
    """The rows that run at K stages, over all processes, into the JSON."""
    before, rows = made["measured"], dict[str, tuple[Json, list[Json], list[Json]]]()
    for number in range(1, bench.processes + 1):
        ready, found = dict[str, Any](), dict[str, list[Json]]()
        with bench.workers() as workers:
            for name in names:
                what = f"compiling {name}, K = {K}, processes {number}"
                ready[name] = attempt(made, what, partial(bench.prepared, workers, name, K))
            ready = {name: own for name, own in ready.items() if own}
            if "serial" in ready:
                found = attempt(made, f"timing K = {K}, processes {number}", partial(bench.timed, ready)) or {}
        for name, answers in found.items():
            _, own, serial = rows.setdefault(name, (ready[name][1], [], []))
            own.extend(answers)
            serial.extend(found["serial"])
        made["measured"] = [*before, *(row | measured_row(own, serial) for row, own, serial in rows.values())]
        yield made


def in_full(made: Json) -> str:
    """A line a row and number of stages."""
    predictions = {(p["row"], p["stages"]): p for p in made["predictions"]}
    found = {(m["row"], m["stages"]): m for m in made["measured"]}
    shown = []
    for row, K in sorted({**found, **predictions}, key=lambda key: key[1]):
        m, p = found.get((row, K)), predictions.get((row, K), {})
        timed = [f"{m['seconds']['median']:.3f}", markdown.median(m["rho"])] if m else ["", ""]
        eq27 = f"{p['rho_eq27']:.2f} < {p['bound_eq27']:.2f}" if p.get("rho_eq27") else ""
        rest = [markdown.shown(p.get(name), form) for name, form in (("not_stage", ".1%"), ("imbalance", ".0%"))]
        contended = markdown.shown(p.get("rho_contended"), ".2f")
        shown.append([str(K), row, *timed, predicted_rho(p) if p else "", contended, eq27, *rest])
    heading = ("K", "method", "s/step", "rho, measured", "predicted", "contended", "Eq. 27", "not stages", "imbalance")
    return markdown.table(heading, shown)


def predicted_rho(prediction: Json) -> str:
    """rho, and the least and the most that one process alone predicts, where there were several."""
    alone = [process["rho"] for process in prediction.get("by_process", [])]
    return f"{prediction['rho']:.2f}" + (f" ({min(alone):.2f} .. {max(alone):.2f})" if len(alone) > 1 else "")


def pieces(*files: Json) -> str:
    """Predicted speed-up of coarse_adjoint by what the AuxNet's pieces are."""
    found: dict[str, dict[int, Json]] = {}
    for row in (row for made in files for row in made["predictions"]):
        if row["fields"]["method"] == "coarse_adjoint":
            found.setdefault(row["row"], {})[row["stages"]] = row
    shown = []
    for cells in found.values():
        fields = next(iter(cells.values()))["fields"]
        sizes = [fields["aux.grid"], fields.get("aux.blocks_per_stage", 1), fields.get("aux.width", 1)]
        rho = [predicted_rho(cells[K]) if K in cells else "" for K in (2, 4, 8)]
        shown.append([*(f"{size:g}" for size in sizes), *rho])
    names = ["`aux.grid`", "`aux.blocks_per_stage`", "`aux.width`"]
    return markdown.table([*names, *(f"rho, K = {K}" for K in (2, 4, 8))], shown)


TABLES = {name: Table(in_full, (name,)) for name in ("speedup", "speedup_micro_batches", "speedup_wrn16_4")}
TABLES |= {"pieces": Table(pieces, ("speedup", "speedup_grid_8", "speedup_pieces"))}
EXPERIMENT = Experiment(run, config="configs/cifar10_resnet110.py", out="speedup", show=in_full, tables=TABLES)
