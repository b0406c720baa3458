"""Test accuracy against speed-up, and time to accuracy, for each method and number of stages.

Accuracy and epochs are those of a file of `accuracy`, a small network.  rho is that of another one, ResNet-110, by the
cost model, from the seconds of its units measured here on one core, the link found by `speedup`, and each method's own
balanced cuts, on devices that do not hinder each other.  Of a run in phases, rho is that of the whole run.  Memory is
estimated, operations and bytes sent are counted.

    time to accuracy = rho (epochs of backprop) / (epochs of the method)

epochs: to the first test at most half a point under the last accuracy of backprop by the same seed, mean over the seeds
of both; none where a seed does not get there.
"""

import functools
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.accuracy.tables import PROTOCOL
from experiments.harness import markdown, plot
from experiments.harness.experiment import RESULTS, Call, Experiment, Json, Table
from experiments.harness.rows import Fields, fields_of, load
from experiments.harness.stats import row_of
from experiments.predict.scale_check import alone_on_one_core, here, measured_units, memory_bandwidth
from lpjax.config.schema import Config
from lpjax.cost import balance
from lpjax.cost.machine import Link, Machine, UnitSeconds
from lpjax.cost.model import device_bytes, step_seconds
from lpjax.cost.timing import Seconds
from lpjax.cost.traffic import scheduled, total_bytes
from lpjax.methods import METHODS
from lpjax.training import run as runs
from lpjax.training.summary import item_flops

BELOW, BATCH = 0.005, 144
"""Half a point; examples of a step of which rho is told: of 2, 3, 4, 8 and 16 devices each has equally many."""

EXACT = {"data_parallel": "serial", "pipeline, 8 micro-batches": "serial, accumulate 8"}
"""Rows whose numbers are another one's but for rounding, whose runs are told as theirs."""


def compared(rows: list[Json], over_serial: Callable[[str, int], Json]) -> list[Json]:
    """The rows of the JSON, from those of `accuracy` that have a seed in common with backprop, and a row's speed-up."""
    made = []
    epoch = min((run["accuracy"][0][0] for row in rows for run in row["runs"]), default=0)  # steps
    for row in published(rows):
        serial = row_of(rows, "serial", row["stages"])
        curves, bases = ({run["seed"]: run["accuracy"] for run in r["runs"]} if r else {} for r in (row, serial))
        pairs = [(curves[seed], bases[seed]) for seed in sorted(curves.keys() & bases.keys())]
        if not pairs:
            continue
        every = all(curve[0][0] == epoch and len(curve) > 1 for pair in pairs for curve in pair)
        targets = [base[-1][1] - BELOW for _, base in pairs]
        reached: list[list[int | None]] = [
            [next((i for i, (_, value) in enumerate(curve, 1) if value >= target), None) for curve in pair]
            for pair, target in zip(pairs, targets, strict=True)
        ]
        own, base = (statistics.mean(of) if every and all(of) else None for of in zip(*reached, strict=True))
        told = {key: row[key] for key in ("row", "stages", "n", "accuracy_mean", "accuracy_std")}
        told["minus_serial"] = statistics.mean(curve[-1][1] - base_curve[-1][1] for curve, base_curve in pairs)
        told |= over_serial(row["row"], row["stages"]) | {"every_epoch": every, "epochs": own}
        made.append({**told, "time_to_accuracy": told["rho"] * base / own if own and base else None})
    return made


def published(rows: list[Json]) -> list[Json]:
    """Those whose network is the published one, and whose methods' shares of a run are known before it."""
    left_out = {"standardise", "phases.by"}
    return [row for row in rows if left_out.isdisjoint(fields_of(row["row"]))]


def in_phases(row: str) -> list[tuple[Fields, float]]:
    """Fields of what a row trains by, one method after another, and the share that each has of the epochs."""
    fields = fields_of(row)
    starts = (0.0, *fields.get("phases.epochs", ()))
    total = fields.get("num_epochs", PROTOCOL["num_epochs"])
    shares = [(end - start) / total for start, end in itertools.pairwise((*starts, total))]
    methods = fields.get("phases.methods", (fields["method"],))
    alone = {name: value for name, value in fields.items() if not name.startswith("phases.")}
    return [(alone | {"method": method}, share) for method, share in zip(methods, shares, strict=True)]


def step_cost(config: Config, machine: Machine) -> Json:
    """Seconds of a step by the model, operations of all devices, and the bytes that one holds and sends."""
    run = runs.prepare(config)
    items, sizes = METHODS[config.method].work(run.network, run.config), run.config.mesh_shape
    return {
        "seconds": step_seconds(run.network, run.config, machine).total,
        "flops": sum(map(item_flops, items)),
        "memory_bytes": sum(device_bytes(run.network, run.config, run.spec.num_train).values()),
        "sent_bytes": total_bytes(scheduled(items, dict(zip(("stage", "data"), sizes, strict=True)))),
    }


def model(path: str, units: UnitSeconds, machine: Machine) -> Callable[[str, int], Json]:
    """(row, K) -> rho, and operations and memory over backprop's; a run in phases has the cuts of its first one."""

    def config(fields: Fields, num_stages: int, **own: Any) -> Config:
        return load(path, {**fields, "num_stages": num_stages, "batch_size": BATCH, "dry_run": True, **own})

    def cost(*unit: Any) -> Seconds:
        forward, backward = units(*unit)
        return Seconds(forward, forward + backward, forward + backward / 2)

    serial = step_cost(config({"method": "serial"}, 1), machine)

    @functools.cache
    def over_serial(row: str, num_stages: int) -> Json:
        phases, own = in_phases(row), dict[str, Any]()
        if METHODS[phases[0][0]["method"]].staged:
            own["cuts"], _ = balance.measured_cuts(config(phases[0][0], num_stages), cost, repeats=0, rounds=0)
        found = [(share, step_cost(config(fields, num_stages, **own), machine)) for fields, share in phases]
        mean = {name: sum(share * step[name] for share, step in found) for name in serial}
        told = {"rho": serial["seconds"] / mean["seconds"], "flops": mean["flops"] / serial["flops"]}
        memory = max(step["memory_bytes"] for _, step in found) / serial["memory_bytes"]
        return told | {"memory": memory, "sent_bytes": mean["sent_bytes"]}

    return over_serial


def run(
    call: Call, accuracy: Path = RESULTS / "accuracy_final.json", speed: Path = RESULTS / "speedup.json",
    repeats: int = 5, stages: str = "2,4,8,16",
) -> Iterator[Json]:  # fmt: skip
    """The JSON at the end."""
    alone_on_one_core()
    units, found = measured_units(repeats), json.loads(accuracy.read_text())
    over_serial = model(
        call.config, units, here(units, memory_bandwidth(), Link(**json.loads(speed.read_text())["link"]))
    )
    known, every = found["rows"], sorted({row["stages"] for row in found["rows"]} - {1})
    same = [(row, row_of(known, base, K), K) for (row, base), K in itertools.product(EXACT.items(), every)]
    known = known + [base | {"row": row, "stages": K} for row, base, K in same if base]
    rows, names = compared(known, over_serial), dict.fromkeys(row["row"] for row in published(known))
    pairs = itertools.product(names, map(int, stages.split(",")))
    costs = [{"row": name, "stages": K, **over_serial(name, K)} for name, K in pairs]
    told = {"accuracy": {str(accuracy): found["commit"]}, "config": call.config, "costs": costs}
    yield {**told, "rows": sorted(rows, key=lambda row: row["stages"])}


def in_full(made: Json) -> str:
    """A line a row and number of stages."""
    shown = []
    for row in published(made["rows"]):
        reached = markdown.shown(row["epochs"], ".1f") or ("not reached" if row["every_epoch"] else "")
        told = [f"{100 * row['minus_serial']:+.2f}", f"{row['rho']:.2f}", reached]
        own, others = (
            row["time_to_accuracy"],
            [r for r in made["rows"] if r["stages"] == row["stages"] and r is not row],
        )
        best = max((rival["time_to_accuracy"] or 0.0 for rival in others), default=0.0)
        rival = own / best if own and best else None
        told += [markdown.shown(value, ".2f") for value in (own, rival)]
        shown.append([str(row["stages"]), row["row"], *told])
    heading = ["minus backprop, points", "rho, model", "epochs to backprop less 0.5 points", "time to accuracy"]
    return markdown.table(["K", "", *heading, "over the best other row"], shown)


def rivals(made: Json, *measured: Json) -> str:
    """A line a row: accuracy, rho as it was measured by `speedup` and by the model, and what a step costs."""
    timed = {own["row"]: own["rho"]["median"] for file in measured for own in file["measured"] if own["stages"] == 2}
    costs, shown = {(own["row"], own["stages"]): own for own in made["costs"]}, []
    stages = sorted({K for _, K in costs})
    most = max(row["stages"] for row in made["rows"])
    for name in dict.fromkeys(name for name, _ in costs):
        found = [row_of(made["rows"], name, K) for K in stages if K in (4, 8)]
        rho = [timed.get(name), *(costs[name, K]["rho"] for K in stages)]
        cost, reached = costs[name, most], (row_of(made["rows"], name, most) or {}).get("time_to_accuracy")
        told = [*(markdown.shown(value, ".2f") for value in (*rho, reached, cost["memory"], cost["flops"]))]
        accuracies = [markdown.percent(row) if row else "" for row in found]
        shown.append([name, *accuracies, *told, f"{cost['sent_bytes'] / 1e6:.1f}"])
    heading = ["", "%, K = 4", "%, K = 8", "rho(2), measured", *(f"rho({K})" for K in stages)]
    over = [f"{what}, K = {most}" for what in ("time to accuracy", "memory", "operations", "MB sent")]
    return markdown.table([*heading, *over], shown)


def draw(path: Path, made: Json) -> None:
    """Accuracy under backprop's over rho, a line a method, a point a number of stages."""
    by_name: dict[str, list[Json]] = {}
    for row in published(made["rows"]):
        by_name.setdefault(row["row"], []).append(row)
    with plot.figure(path, figsize=(6.5, 4)) as (_, axis):
        for number, (name, rows) in enumerate((name, rows) for name, rows in by_name.items() if name != "serial"):
            rho, points = [row["rho"] for row in rows], [100 * row["minus_serial"] for row in rows]
            scatter = [100 * (row["accuracy_std"] or 0.0) for row in rows]
            axis.errorbar(rho, points, scatter, capsize=3, label=name, marker="osD^vPX*<>"[number % 10])
            for row, *at in zip(rows, rho, points, strict=True):
                axis.annotate(f"K = {row['stages']}", at, textcoords="offset points", xytext=(4, 5), fontsize=8)
        axis.axhline(0, color="gray", lw=1, ls=":")
        axis.set(xlabel="rho, speed-up over backprop on one device (cost model)")
        axis.set(ylabel="accuracy minus backprop's, points")
        axis.legend(fontsize=8)


EXPERIMENT = Experiment(
    run,
    config="configs/cifar10_resnet110.py",
    out="tradeoff",
    show=in_full,
    tables={
        "tradeoff_all": Table(in_full, ("tradeoff_all",)),
        "rivals": Table(rivals, ("tradeoff_fashion", "speedup", "speedup_micro_batches")),
    },
    pictures={"tradeoff_all": (draw, ("tradeoff_all",))},
)
