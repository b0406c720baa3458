"""Speed-up of methods over backprop on one device: measured, and predicted from the parts of a step.

Nothing is read or learnt: the images are noise.  The machine must have nothing else to do.

Where there are devices for K stages each row's step is timed, the rows taking turns (`rounds` times `steps` steps
each), and rho = seconds of serial on one device / its own, paired by round.  On CPUs a device is a core: serial runs in
a process that has one, and, as `serial_default`, in one that may use all.

Where a method has a stage's program all parts of a step are timed alone on one device, for every K, and beside them the
whole step of serial.  With what links take they predict rho:

    predicted  seconds of serial / end of the method's schedule
    contended  the same where devices share memory and clock: all takes as much longer as the stages take when they run
               at the same time; for as many K as there are devices
    Eq. 27     (T_d + T_f + T_b) / (T_d + t_psi + T_AuxNet + (T_f + T_b) / K)     of arXiv:2112.05387, a serial AuxNet;
               T of the whole network and batch

not stages: what of the predicted step is something else.  imbalance: by how much the dearest stage is over the mean.

On CPUs the same program takes more or less time in another process, by a fifth and more, so all is done `processes`
times in new ones, and a part counts with its median over these; in brackets what one process alone predicts.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from experiments.harness import markdown
from experiments.harness.experiment import Experiment, Json, Option, Table
from experiments.harness.rows import fields_of
from experiments.speed.bench import Bench, Ready, measured_row
from lpjax.methods import METHODS


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON after every part."""
    names = list(dict.fromkeys(["serial", *args.rows.split(";")]))
    with_stage_programs = [name for name in names if METHODS[fields_of(name)["method"]].stage_program is not None]
    bench = Bench(args)
    made: Json = {
        "where": bench.where,
        "environment": bench.environment,
        "environment_of_parts": bench.apart,
        "config": bench.config,
        "overrides": args.fields,
        **{name: getattr(args, name) for name in ("rounds", "steps")},
        "processes": bench.processes,
        "measured": [],
        "predictions": [],
        "failed": [],
    }
    for K in (K for K in bench.stages if bench.available >= K):
        yield from measured(bench, names, K, made)
    if with_stage_programs:
        count = min(max(bench.stages), bench.available)
        made["link"] = None
        if count > 1:
            with bench.workers() as workers:
                made["link"] = workers.many.ask("link", devices=count, repeats=args.repeats)
    for row, K in itertools.product(with_stage_programs, bench.stages):
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
    before = made["measured"]
    rows: dict[str, tuple[Json, list[Json], list[Json]]] = {}
    for number in range(1, bench.processes + 1):
        with bench.workers() as workers:
            ready: dict[str, Ready] = {}
            for name in names:
                what = f"compiling {name}, K = {K}, processes {number}"
                ready |= attempt(made, what, partial(bench.prepared, workers, name, K)) or {}
            work = partial(bench.timed, ready)
            found = (attempt(made, f"timing K = {K}, processes {number}", work) if "serial" in ready else None) or {}
        for name, answers in found.items():
            _, own, serial = rows.setdefault(name, (ready[name].row, [], []))
            own.extend(answers)
            serial.extend(found["serial"])
        made["measured"] = [*before, *(row | measured_row(own, serial) for row, own, serial in rows.values())]
        yield made


# ------------------------------------------------------------------------------------------------------------ tables


def in_full(made: Json) -> str:
    """A line a row and number of stages."""
    heading = ("K", "method", "s/step", "rho, measured", "predicted", "contended", "Eq. 27", "not stages", "imbalance")
    predictions = {(p["row"], p["stages"]): p for p in made["predictions"]}
    found = {(m["row"], m["stages"]): m for m in made["measured"]}
    shown = []
    for row, K in sorted({**found, **predictions}, key=lambda key: key[1]):
        m, p = found.get((row, K)), predictions.get((row, K), {})
        shown.append(
            [
                str(K),
                row,
                *([f"{m['seconds']['median']:.3f}", markdown.median(m["rho"])] if m else ["", ""]),
                predicted_rho(p) if p else "",
                markdown.shown(p.get("rho_contended"), ".2f"),
                f"{p['rho_eq27']:.2f} < {p['bound_eq27']:.2f}" if p.get("rho_eq27") else "",
                markdown.shown(p.get("not_stage"), ".1%"),
                markdown.shown(p.get("imbalance"), ".0%"),
            ]
        )
    return markdown.table(heading, shown)


def predicted_rho(prediction: Json) -> str:
    """rho, and the least and the most that one process alone predicts, where there were several."""
    alone = [process["rho"] for process in prediction.get("by_process", [])]
    return f"{prediction['rho']:.2f}" + (f" ({min(alone):.2f} .. {max(alone):.2f})" if len(alone) > 1 else "")


PIECES = ("speedup", "speedup_grid_8", "speedup_pieces")


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
        shown.append(
            [*(f"{size:g}" for size in sizes), *(predicted_rho(cells[K]) if K in cells else "" for K in (2, 4, 8))]
        )
    names = ["`aux.grid`", "`aux.blocks_per_stage`", "`aux.width`"]
    return markdown.table([*names, *(f"rho, K = {K}" for K in (2, 4, 8))], shown)


EXPERIMENT = Experiment(
    name="speedup",
    doc=__doc__,
    run=run,
    options=(
        Option("rows", "serial;data_parallel;pipeline;fdg;local;coarse_tail;coarse_adjoint", "with ; between them"),
        Option("stages", "2,4,8", "numbers of stages K"),
        Option("rounds", 2, "of turns, in each process"),
        Option("steps", 2, "of a row in a round"),
        Option("repeats", 5, "measurements of a part"),
        Option("processes", 3, "on CPUs, that all is timed in"),
        Option("cuts", "measured", "by measured seconds, or even by FLOPs", ("measured", "even")),
        Option("plain", False, "leave the environment as it is"),
    ),
    config="configs/cifar10_resnet110.py",
    out="speedup",
    show=in_full,
    tables={
        "speedup": Table(in_full, ("speedup",)),
        "speedup_wrn16_4": Table(in_full, ("speedup_wrn16_4",)),
        "pieces": Table(pieces, PIECES),
    },
)
