"""README's trade-off: test accuracy against speed-up, and time to accuracy, for each method and number of stages.

    python -m experiments.tradeoff [--accuracy=experiments/results/accuracy_final.json,..]
        [--speed=experiments/results/speedup.json] [--config=configs/cifar10_resnet110.py] [--repeats=5]
        [--out=experiments/results/tradeoff.json]

Accuracy and epochs are those of `experiments.accuracy final`, a small network.  rho is that of another one, ResNet-110,
by the cost model of `lpjax.cost.model`, from the seconds of its units measured here on one core, the link found by
`experiments.speedup`, and each method's own balanced cuts, on devices that do not hinder each other.
`experiments.scale_check` says how far the model is from what was measured at K = 2.

    time to accuracy = rho (epochs of backprop) / (epochs of the method)

Of a run in phases, rho is that of the whole run, all by the cuts of its first method.

epochs: to the first test at most `BELOW` under the last accuracy of backprop of the same network by the same seed,
which has the same first weights and batches, mean over the seeds of both; none where a seed does not get there, or was
not tested after every epoch.  Differences are over these seeds, too.  Writes the JSON, and a figure beside it.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.accuracy import FINALS, PROTOCOL, row_of
from experiments.compare import load
from experiments.provenance import provenance
from experiments.scale_check import alone_on_one_core, here, measured_units, memory_bandwidth, predicted
from lpjax.config.schema import Config
from lpjax.cost import balance
from lpjax.cost.machine import Link, Machine, UnitSeconds
from lpjax.cost.timing import Seconds
from lpjax.nn.chain import Shape, UnitLike
from lpjax.training.writers import write_json

BELOW = 0.005

SERIALS = [name for name, fields in FINALS.items() if fields["method"] == "serial"]
"""Rows of backprop, a network each."""

BATCH = 120
"""Examples of a step of which rho is told: of 2, 3, 4 and 8 devices each has equally many."""

Json = dict[str, Any]

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
    return next(name for name in SERIALS if FINALS[name].get("standardise") == FINALS[row].get("standardise"))


def compared(rows: list[Json], rho: Callable[[str, int], float], every_epoch: bool = True) -> list[Json]:
    """The rows of the JSON, from those of `experiments.accuracy` and the speed-up of a row with K stages.

    Those without backprop of their own network by a seed of theirs are left out.  every_epoch: whether those
    tested most often were after each epoch; the others have no epochs.
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
                "row": name,
                "stages": K,
                "n": row["n"],
                "accuracy_mean": row["accuracy_mean"],
                "accuracy_std": row["accuracy_std"],
                "minus_serial": statistics.mean(curve[-1][1] - base_curve[-1][1] for curve, base_curve in pairs),
                "rho": speed,
                "every_epoch": every,
                "epochs": own,
                "time_to_accuracy": speed * base / own if own and base else None,
            }
        )
    return made


def on_larger_images(row: str) -> Json:
    """Fields of a row of `FINALS` for images of 32x32: the grid, where there is one, of the same share as of 14x14."""
    fields = FINALS[row]
    grid = fields.get("aux.grid")
    return fields if grid is None else {**fields, "aux.grid": 2 * grid}


def in_phases(row: str) -> list[tuple[Json, float]]:
    """Fields of what a row trains by, one method after another, and the share that each has of the epochs."""
    fields = on_larger_images(row)
    starts = (0.0, *fields.get("phases.epochs", ()))
    total = fields.get("num_epochs", PROTOCOL["num_epochs"])
    shares = [(end - start) / total for start, end in itertools.pairwise((*starts, total))]
    methods = fields.get("phases.methods", (fields.get("method", "layer_parallel"),))
    alone = {name: value for name, value in fields.items() if not name.startswith("phases.")}
    return [(alone | {"method": method}, share) for method, share in zip(methods, shares, strict=True)]


class Model:
    """rho by the cost model: (row, K) -> serial's seconds over the row's.

    path: the config file.  units: seconds of the units.  machine: devices that have these.
    """

    def __init__(self, path: Path, units: UnitSeconds, machine: Machine) -> None:
        self._path, self._units, self._machine = path, units, machine
        self._serial = predicted(self._config({"method": "serial"}, 1), machine)

    def _config(self, fields: Json, num_stages: int, **own: Any) -> Config:
        """Of fields of a row, on this network."""
        return load(self._path, {**fields, "num_stages": num_stages, "batch_size": BATCH, "dry_run": True, **own})

    def _cost(self, unit: UnitLike, in_shape: Shape, examples: int) -> Seconds:
        forward, backward = self._units(unit, in_shape, examples)
        return Seconds(forward, forward + backward, forward + backward / 2)

    def __call__(self, row: str, num_stages: int) -> float:
        if row in SERIALS:
            return 1.0
        phases = in_phases(row)
        config = self._config(phases[0][0], num_stages)
        cuts, _ = balance.measured_cuts(config, self._cost, repeats=0, rounds=0)
        return self._serial / sum(
            share * predicted(self._config(fields, num_stages, cuts=cuts), self._machine) for fields, share in phases
        )


def markdown(rows: list[Json]) -> str:
    """The table of the README."""
    lines = [
        "| K | | minus backprop, points | rho, model | epochs to backprop less 0.5 points | time to accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed, points = f"{row['rho']:.2f}", f"{100 * row['minus_serial']:+.2f}"
        epochs = "not reached" if row["every_epoch"] else ""
        if row["epochs"] is not None:
            epochs = f"{row['epochs']:.1f}"
        gain = "" if row["time_to_accuracy"] is None else f"{row['time_to_accuracy']:.2f}"
        lines.append(f"| {row['stages']} | {row['row']} | {points} | {speed} | {epochs} | {gain} |")
    return "\n".join(lines)


def draw(rows: list[Json], path: Path) -> None:
    """Accuracy under backprop's over rho, a line a method, a point a number of stages."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in dict.fromkeys(row["row"] for row in rows) if name not in SERIALS]
    with plt.rc_context({"svg.hashsalt": "lpjax", "svg.fonttype": "none"}):
        figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
        for name, marker in zip(names, "osD^vPX*<>", strict=False):
            own = [row for row in rows if row["row"] == name]
            rho, points = [row["rho"] for row in own], [100 * row["minus_serial"] for row in own]
            spread = [100 * (row["accuracy_std"] or 0.0) for row in own]
            axis.errorbar(rho, points, spread, marker=marker, capsize=3, label=name)
            for row, x, y in zip(own, rho, points, strict=True):
                axis.annotate(f"K = {row['stages']}", (x, y), textcoords="offset points", xytext=(4, 5), fontsize=8)
        axis.axhline(0, color="gray", lw=1, ls=":")
        axis.set(
            xlabel="rho, speed-up over backprop on one device (cost model)", ylabel="accuracy minus backprop's, points"
        )
        axis.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", default="experiments/results/accuracy_final.json")
    parser.add_argument("--speed", type=Path, default=Path("experiments/results/speedup.json"))
    parser.add_argument("--config", type=Path, default=Path("configs/cifar10_resnet110.py"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/tradeoff.json"))
    args = parser.parse_args()
    alone_on_one_core("experiments.tradeoff")
    link = Link(**json.loads(args.speed.read_text())["link"])
    accuracies = {name: json.loads(Path(name).read_text()) for name in args.accuracy.split(",")}
    units = measured_units(args.repeats)
    model = Model(args.config, units, here(units, memory_bandwidth(), link))
    rows = [
        row
        for found in accuracies.values()
        for row in compared(found["rows"], model, found["fields"]["eval.every_epochs"] == 1)
    ]
    rows.sort(key=lambda row: row["stages"])
    write_json(
        args.out,
        {
            **provenance("experiments.tradeoff", sys.argv[1:]),
            "accuracy": {name: found["commit"] for name, found in accuracies.items()},
            "config": str(args.config),
            "rows": rows,
        },
    )
    draw(rows, args.out.with_suffix(".svg"))
    print(markdown(rows))


if __name__ == "__main__":
    main()
