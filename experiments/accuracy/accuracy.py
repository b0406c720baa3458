"""Test accuracy of methods by number of stages, mean and standard deviation over seeds; and searches for settings.

TABLE is final (Fashion-MNIST; final_all is all of it), cifar10, cifar100 (both with --config.data.dir=DIR), deep
(ResNet-56), digits, ablation, or a config file of the paper's size, such as cifar10_resnet110 (on a GPU, with
--jobs=1).  With search, runs are judged on the last 10,000 training images, which none trains on, by seeds from 100 on.
--each="field=value|value;field=value" tries each row with each combination of these.

Every run is a process on one core with all stages on one device, which gives the numbers of K devices but not their
time.  Finished runs are kept, and killed ones go on, when the command is given again.  With --add rows and seeds join
those that the JSON has, which must be of the same fields.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from experiments.accuracy.tables import TABLES
from experiments.harness import markdown, plot, stats
from experiments.harness.experiment import Call, Experiment, Json, Table
from experiments.harness.rows import fields_of, load, meaning
from experiments.harness.runs import ONE_CORE, Cell, cells, sweep
from lpjax.errors import BadInput
from lpjax.methods import METHODS

Runs = dict[tuple[str, int], dict[int, Json]]  # by row and number of stages: by seed


def run(
    call: Call, table: str, rows: str = "", stages: str = "4", seeds: int = 3, first_seed: int = 0, jobs: int = 2,
    runs: Path = Path("runs/accuracy"), add: bool = False, each: str = "",
) -> Iterator[Json]:  # fmt: skip
    """The JSON after every run."""
    if table not in TABLES:
        raise BadInput(f"{table!r}: expected one of {', '.join(TABLES)}")
    own = TABLES[table]
    fields = [part.partition("=") for part in each.split(";") if part]
    grids = [[f"{name}={value}" for value in values.split("|")] for name, _, values in fields]
    names = rows.split(";") if rows else own.rows
    by_row = {", ".join(n): fields_of(", ".join(n)) for n in itertools.product(names, *grids)}
    made = call.made | {"config": own.config, "fields": own.fields | call.fields, "by_row": by_row}
    first = first_seed or own.first_seed
    todo = cells(made, by_row, stages, range(first, first + seeds), runs / table)
    made, there = joined(made, json.loads(call.out.read_text())) if add else (made, {})
    yield from trained(made, todo, jobs, there)


def trained(
    made: Json, todo: list[Cell], jobs: int = 1, runs: Runs | None = None, environment: Mapping[str, str] = ONE_CORE
) -> Iterator[Json]:
    """The JSON, `made` and rows in the order of its `by_row`, after every run that is added to `runs`."""
    found, names, failed = {} if runs is None else runs, list(made["by_row"]), list(made.get("failed", []))
    for cell, run in sweep(todo, jobs, environment):
        if run is None:
            failed.append(cell.name)
        else:
            found.setdefault((cell.row, cell.stages), {})[cell.seed] = run
        order = sorted(found, key=lambda key: (key[1], names.index(key[0])))
        rows = [stats.summary(*key, [own for _, own in sorted(found[key].items())]) for key in order]
        yield made | {"failed": failed, "rows": rows}


def joined(made: Json, old: Json) -> tuple[Json, Runs]:
    """What a JSON says beside its rows when runs of the same configuration are added, and the runs that it has."""
    made = json.loads(json.dumps(made))  # tuples become lists, as in the file
    for what in ("config", "fields"):
        if made[what] != old[what]:
            raise BadInput(f"--add: {what} {made[what]}: expected {old[what]}, as the runs have that are there")
    for row, fields in made["by_row"].items():
        there = old["by_row"].get(row, fields)
        if there | {"aux.grid": None} != fields | {"aux.grid": None}:  # a share here, a number in older files
            raise BadInput(f"--add: row {row!r} is {fields}: expected {there}, as its runs there are")
    runs = {(row["row"], row["stages"]): {run["seed"]: run for run in row["runs"]} for row in old["rows"]}
    added = {name: made[name] for name in ("command", "date", "commit", "hardware", "versions")}
    return old | {"by_row": old["by_row"] | made["by_row"], "added": [*old.get("added", []), added], "failed": []}, runs


def by_stages(made: Json) -> str:
    """A line a row, a column a number of stages."""
    stages, shown = sorted({row["stages"] for row in made["rows"]}), []
    for name in dict.fromkeys(row["row"] for row in made["rows"]):
        found = [stats.row_of(made["rows"], name, K) for K in stages]
        shown.append([name, *("" if row is None else markdown.percent(row) for row in found)])
    return markdown.table(["test accuracy, %, mean ± std (seeds)", *(f"K = {K}" for K in stages)], shown)


LONG = {"accuracy_final_all": "Fashion-MNIST", "accuracy_cifar10_all": "CIFAR-10", "accuracy_cifar100": "CIFAR-100"}
SHORT = {"accuracy_final": "Fashion-MNIST", "accuracy_cifar10": "CIFAR-10"}
"""Files of long and of short runs, and the data set of each."""

PAIRS = {
    "coarse_adjoint": ("serial", "fdg"),
    "coarse_adjoint, delayed from epoch 8": ("serial", "coarse_adjoint"),
    "coarse_adjoint, delayed from epoch 10, 18 epochs": ("serial",),
    "coarse_adjoint, tied": ("serial", "coarse_adjoint"),
    **dict.fromkeys(("fdg", "local", "coarse_tail", "serial, standardised"), ("serial",)),
    **dict.fromkeys(("serial, deep supervision 0.1", "local, sampled", "fdg, 16 micro-batches"), ("serial",)),
    "coarse_adjoint, standardised": ("coarse_adjoint",),
    "fdg, 8 micro-batches": ("serial", "coarse_adjoint"),
}
"""Rows that are compared wherever both have been run with two seeds or more."""


def paired(names: Iterable[str], *files: Json) -> str:
    """Differences seed by seed, a line a data set and pair, a column a number of stages."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    pairs = [(row, base) for row, bases in PAIRS.items() for base in bases]
    for (name, made), (row, base) in itertools.product(zip(names, files, strict=True), pairs):
        for K in sorted({own["stages"] for own in made["rows"]}):
            if told := stats.difference(*(stats.row_of(made["rows"], of, K) for of in (row, base))):
                found.setdefault((name, f"{row} minus {base}"), {})[K] = told
    every = sorted({K for cells in found.values() for K in cells})
    shown = [[*pair, *(cells.get(K, "") for K in every)] for pair, cells in found.items()]
    return markdown.table(["", "points", *(f"K = {K}" for K in every)], shown)


def changes(base: str, made: Json) -> str:
    """What changes of a row do: accuracy, the difference to the row `base`, and where it was counted the traffic."""
    (own,), shown = [row for row in made["rows"] if row["row"] == base], []
    sent = ["MB sent a step"] * ("exchanged_bytes" in own)
    for row in made["rows"]:
        minus = "" if row is own else stats.difference(row, own)
        told = [row["row"], meaning(row["row"]), markdown.percent(row), minus]
        shown.append([*told, *(f"{row['exchanged_bytes'] / 1e6:.2f}" for _ in sent)])
    minus = f"minus {base}, points, mean ± standard error (seeds)"
    return markdown.table(["", "", "test accuracy, %, mean ± std (n)", minus, *sent], shown)


def draw(path: Path, made: Json) -> None:
    """Accuracy minus backprop's over K, a line a row; dotted, on the right, how many updates late its gradients are."""
    base, *_ = (row["accuracy_mean"] for row in made["rows"] if row["row"] == "serial")
    with plot.figure(path, figsize=(6.5, 4)) as (_, axis):
        right = axis.twinx()
        for number, name in enumerate(name for name in made["by_row"] if name != "serial"):
            rows = [row for row in made["rows"] if row["row"] == name]
            points = [100 * (row["accuracy_mean"] - base) for row in rows]
            stages, scatter = [row["stages"] for row in rows], [100 * (row["accuracy_std"] or 0.0) for row in rows]
            color, marker = f"C{number}", "osD^vPX*<>"[number % 10]
            axis.errorbar(stages, points, scatter, capsize=3, label=name, color=color, marker=marker)
            fields = {**made["fields"], **made["by_row"][name]}
            configs = [load(made["config"], fields | {"num_stages": K}) for K in stages]
            late = [max(age.weights for own in METHODS[c.method].ages(c) for age in own) for c in configs]
            if any(late):
                right.plot(stages, late, ls=":", color=color)
        axis.axhline(0, color="gray", lw=1)
        ticks = sorted({row["stages"] for row in made["rows"]})
        axis.set(xlabel="stages K", ylabel="accuracy minus backprop's, points", xticks=ticks)
        right.set(ylabel="updates that the oldest gradients are late (dotted)", ylim=(0, None))
        axis.legend(fontsize=8)


EXPERIMENT = Experiment(
    run,
    config="",
    out="accuracy_{table}",
    show=by_stages,
    tables={
        **{name: Table(by_stages, (name,)) for name in (*LONG, *SHORT)},
        "paired_long": Table(partial(paired, LONG.values()), tuple(LONG)),
        "paired_short": Table(partial(paired, SHORT.values()), tuple(SHORT)),
        "ablation": Table(partial(changes, "coarse_adjoint"), ("accuracy_ablation",)),
        "aux": Table(partial(changes, "coarse_tail"), ("price",)),
    },
    pictures={"accuracy_deep": (draw, ("accuracy_deep",))},
)
