"""Test accuracy against speed-up, and time to accuracy, for each method and number of stages.

Accuracy and epochs are those of a file of `accuracy`, a small network.  rho is that of another one, ResNet-110, by the
cost model, from the seconds of its units measured here on one core, the link found by `speedup`, and each method's own
balanced cuts, on devices that do not hinder each other.  Of a run in phases, rho is that of the whole run.

    time to accuracy = rho (epochs of backprop) / (epochs of the method)

epochs: to the first test at most half a point under the last accuracy of backprop of the same network by the same seed,
mean over the seeds of both; none where a seed does not get there, or was not tested after every epoch.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.accuracy.tables import PROTOCOL
from experiments.harness import markdown, plot
from experiments.harness.experiment import RESULTS, Experiment, Json, Option, Picture, Table
from experiments.harness.rows import Fields, fields_of, load
from experiments.harness.stats import row_of
from experiments.predict.here import alone_on_one_core, here, measured_units, memory_bandwidth, predicted
from lpjax.config.schema import Config
from lpjax.cost import balance
from lpjax.cost.machine import Link, Machine, UnitSeconds
from lpjax.cost.timing import Seconds
from lpjax.nn.chain import Shape, UnitLike

BELOW = 0.005

BATCH = 120
"""Examples of a step of which rho is told: of 2, 3, 4 and 8 devices each has equally many."""

Curve = list[tuple[int, float]]
"""(step, accuracy) of each test."""


def epochs_to(curve: Curve, target: float) -> int | None:
    """Epochs to the first test of at least `target`, of a test after each; None without one."""
    return next((number for number, (_, value) in enumerate(curve, 1) if value >= target), None)


def mean_epochs(curves: Iterable[Curve], targets: list[float]) -> float | None:
    """Over the seeds, each to its own target; None where one does not get there."""
    found = [epochs_to(curve, target) for curve, target in zip(curves, targets, strict=True)]
    return None if None in found else statistics.mean(number for number in found if number)


def backprop(row: str) -> str:
    """The row of backprop of the same network as that of a row: with or without standardisation at the cuts."""
    return "serial, standardised" if fields_of(row).get("standardise") else "serial"


def compared(rows: list[Json], rho: Callable[[str, int], float], every_epoch: bool = True) -> list[Json]:
    """The rows of the JSON.

    Args:
      rows: Of `accuracy`.  Those without backprop of their own network by a seed of theirs are left out.
      rho: Speed-up of a row with K stages.
      every_epoch: Whether those tested most often were after each epoch; the others have no epochs.
    """
    made = []
    epoch = min((run["accuracy"][0][0] for row in rows for run in row["runs"]), default=0)  # steps
    for row in rows:
        name, K = row["row"], row["stages"]
        serial = row_of(rows, backprop(name), K)
        curves, base_curves = ({run["seed"]: run["accuracy"] for run in r["runs"]} if r else {} for r in (row, serial))
        both = sorted(curves.keys() & base_curves.keys())
        if not both:
            continue
        pairs = [(curves[seed], base_curves[seed]) for seed in both]
        targets = [base_curve[-1][1] - BELOW for _, base_curve in pairs]
        every = every_epoch and all(curve[0][0] == epoch for both_curves in pairs for curve in both_curves)
        own, base = (mean_epochs(found, targets) if every else None for found in zip(*pairs, strict=True))
        speed = rho(name, K)
        made.append(
            {
                **{key: row[key] for key in ("row", "stages", "n", "accuracy_mean", "accuracy_std")},
                "minus_serial": statistics.mean(curve[-1][1] - base_curve[-1][1] for curve, base_curve in pairs),
                "rho": speed,
                "every_epoch": every,
                "epochs": own,
                "time_to_accuracy": speed * base / own if own and base else None,
            }
        )
    return made


def in_phases(row: str) -> list[tuple[Fields, float]]:
    """Fields of what a row trains by, one method after another, and the share that each has of the epochs."""
    fields = fields_of(row)
    starts = (0.0, *fields.get("phases.epochs", ()))
    total = fields.get("num_epochs", PROTOCOL["num_epochs"])
    shares = [(end - start) / total for start, end in itertools.pairwise((*starts, total))]
    methods = fields.get("phases.methods", (fields["method"],))
    alone = {name: value for name, value in fields.items() if not name.startswith("phases.")}
    return [(alone | {"method": method}, share) for method, share in zip(methods, shares, strict=True)]


class Model:
    """rho by the cost model: (row, K) -> serial's seconds over the row's."""

    def __init__(self, path: str, units: UnitSeconds, machine: Machine) -> None:
        """For a config file, seconds of its units, and devices that have these."""
        self._path, self._units, self._machine = path, units, machine
        self._serial = predicted(self._config({"method": "serial"}, 1), machine)

    def _config(self, fields: Fields, num_stages: int, **own: Any) -> Config:
        """Of fields of a row, on this network."""
        return load(self._path, {**fields, "num_stages": num_stages, "batch_size": BATCH, "dry_run": True, **own})

    def _cost(self, unit: UnitLike, in_shape: Shape, examples: int) -> Seconds:
        forward, backward = self._units(unit, in_shape, examples)
        return Seconds(forward, forward + backward, forward + backward / 2)

    def __call__(self, row: str, num_stages: int) -> float:
        """Of a row with K stages; of a run in phases with the cuts of its first method."""
        if fields_of(row)["method"] == "serial":
            return 1.0
        phases = in_phases(row)
        config = self._config(phases[0][0], num_stages)
        cuts, _ = balance.measured_cuts(config, self._cost, repeats=0, rounds=0)
        return self._serial / sum(
            share * predicted(self._config(fields, num_stages, cuts=cuts), self._machine) for fields, share in phases
        )


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON at the end."""
    alone_on_one_core()
    link = Link(**json.loads(Path(args.speed).read_text())["link"])
    files = {name: json.loads(Path(name).read_text()) for name in args.accuracy.split(",")}
    units = measured_units(args.repeats)
    model = Model(args.config, units, here(units, memory_bandwidth(), link))
    rows = [
        row
        for found in files.values()
        for row in compared(found["rows"], model, found["fields"]["eval.every_epochs"] == 1)
    ]
    commits = {name: found["commit"] for name, found in files.items()}
    yield {"accuracy": commits, "config": args.config, "rows": sorted(rows, key=lambda row: row["stages"])}


# -------------------------------------------------------------------------------------------------- tables and pictures


def published(made: Json) -> list[Json]:
    """The rows whose network is the published one."""
    return [row for row in made["rows"] if backprop(row["row"]) == "serial"]


def in_full(made: Json) -> str:
    """A line a row and number of stages."""
    shown = []
    for row in published(made):
        epochs = "not reached" if row["every_epoch"] else ""
        shown.append(
            [
                str(row["stages"]),
                row["row"],
                f"{100 * row['minus_serial']:+.2f}",
                f"{row['rho']:.2f}",
                epochs if row["epochs"] is None else f"{row['epochs']:.1f}",
                markdown.shown(row["time_to_accuracy"], ".2f"),
            ]
        )
    heading = ["minus backprop, points", "rho, model", "epochs to backprop less 0.5 points", "time to accuracy"]
    return markdown.table(["K", "", *heading], shown)


def draw(path: Path, made: Json) -> None:
    """Accuracy under backprop's over rho, a line a method, a point a number of stages."""
    rows = published(made)
    names = [name for name in dict.fromkeys(row["row"] for row in rows) if name != "serial"]
    with plot.figure(path, figsize=(6.5, 4)) as (_, (axis,)):
        for number, name in enumerate(names):
            own = [row for row in rows if row["row"] == name]
            rho, points = [row["rho"] for row in own], [100 * row["minus_serial"] for row in own]
            scatter = [100 * (row["accuracy_std"] or 0.0) for row in own]
            axis.errorbar(rho, points, scatter, capsize=3, label=name, **plot.look(number))
            for row, x, y in zip(own, rho, points, strict=True):
                axis.annotate(f"K = {row['stages']}", (x, y), textcoords="offset points", xytext=(4, 5), fontsize=8)
        axis.axhline(0, color="gray", lw=1, ls=":")
        speed, accuracy = "rho, speed-up over backprop on one device (cost model)", "accuracy minus backprop's, points"
        axis.set(xlabel=speed, ylabel=accuracy)
        axis.legend(fontsize=8)


EXPERIMENT = Experiment(
    name="tradeoff",
    doc=__doc__,
    run=run,
    options=(
        Option("accuracy", str(RESULTS / "accuracy_final.json"), "files of `accuracy`, with commas between them"),
        Option("speed", str(RESULTS / "speedup.json"), "file of `speedup`, for its link"),
        Option("repeats", 5, "measurements of a unit"),
    ),
    config="configs/cifar10_resnet110.py",
    out="tradeoff",
    show=in_full,
    tables={"tradeoff_all": Table(in_full, ("tradeoff_all",))},
    pictures={"tradeoff_all": Picture(draw, ("tradeoff_all",))},
)
