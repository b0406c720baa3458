"""Test accuracy of methods by number of stages, mean and standard deviation over seeds.

TABLE is final (Fashion-MNIST), cifar10, cifar100 (both with --config.data.dir=DIR), deep (ResNet-56), digits, ablation,
or a config file of the paper's size, such as cifar10_resnet110 (on a GPU, with --jobs=1).

Every run is a process on one core with all stages on one device, which gives the numbers of K devices but not their
time, so no time is told here; `jobs` of them run side by side.  Finished runs are kept, and killed ones go on, when the
command is given again.  With --add rows and seeds join those that the JSON has, which must be of the same fields.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from experiments.accuracy.tables import TABLES
from experiments.harness import markdown, stats
from experiments.harness.experiment import Experiment, Json, Option, Table
from experiments.harness.rows import Fields, fields_of, meaning
from experiments.harness.runs import ONE_CORE, cells, sweep
from lpjax.errors import BadInput

Runs = dict[tuple[str, int], dict[int, Json]]
"""By row and number of stages: by seed."""


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON after every run."""
    table = TABLES[args.table]
    names = args.rows.split(";") if args.rows else list(table.rows)
    shared = table.fields | args.fields
    by_row = {name: fields_of(name) for name in names}
    keys = [(name, K) for K in map(int, args.stages.split(",")) for name in names]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    todo = cells(table.config, {key: shared | by_row[key[0]] for key in keys}, seeds, args.runs / args.table)
    made = args.made | {"config": table.config, "fields": shared, "by_row": by_row}
    runs: Runs = {}
    if args.add:
        made, runs = joined(made, json.loads(args.out.read_text()))
    yield from trained(made, runs, todo, args.jobs, [*table.rows, *made["by_row"]])


def trained(made: Json, runs: Runs, todo: list, jobs: int, names: list[str]) -> Iterator[Json]:
    """The JSON after every run.

    Args:
      made: What it says beside its rows.
      runs: That are there, and to which the others are added.
      todo: `harness.runs.cells`.
      jobs: Runs side by side.
      names: Of all rows, in order.
    """
    failed: list[str] = []
    for cell, found in sweep(todo, jobs, ONE_CORE):
        if found is None:
            failed.append(cell.name)
        else:
            runs.setdefault((cell.row, cell.stages), {})[cell.seed] = found
        order = sorted(runs, key=lambda key: (key[1], names.index(key[0])))
        rows = [stats.summary(*key, [own for _, own in sorted(runs[key].items())]) for key in order]
        yield made | {"failed": failed, "rows": rows}


def joined(made: Json, old: Json) -> tuple[Json, Runs]:
    """What a JSON says beside its rows when runs are added to it, and the runs that it has.

    Raises:
      BadInput: These are of another configuration.
    """
    made = json.loads(json.dumps(made))  # tuples become lists, as in the file
    for what in ("config", "fields"):
        if made[what] != old[what]:
            raise BadInput(f"--add: {what} {made[what]}: expected {old[what]}, as the runs have that are there")
    for row, fields in made["by_row"].items():
        if row in old["by_row"] and in_words(old["by_row"][row]) != in_words(fields):
            raise BadInput(f"--add: row {row!r} is {fields}: expected {old['by_row'][row]}, as its runs there are")
    runs = {(row["row"], row["stages"]): {run["seed"]: run for run in row["runs"]} for row in old["rows"]}
    added = {name: made[name] for name in ("command", "date", "commit", "hardware", "versions")}
    kept = {name: value for name, value in old.items() if name not in ("rows", "failed")}
    return kept | {"by_row": made["by_row"] | old["by_row"], "added": [*old.get("added", []), added]}, runs


def in_words(fields: Mapping[str, object]) -> Fields:
    """Fields of a row without the grid, which files have in numbers."""
    return {name: value for name, value in fields.items() if name != "aux.grid"}


# -------------------------------------------------------------------------------------------------------------- tables


def by_stages(made: Json) -> str:
    """A line a row, a column a number of stages."""
    rows = made["rows"]
    stages = sorted({row["stages"] for row in rows})
    shown = []
    for name in dict.fromkeys(row["row"] for row in rows):
        found = [stats.row_of(rows, name, K) for K in stages]
        shown.append([name, *("" if row is None else markdown.percent(row) for row in found)])
    return markdown.table(["test accuracy, %, mean ± std (seeds)", *(f"K = {K}" for K in stages)], shown)


LONG = {"accuracy_cifar10_all": "CIFAR-10", "accuracy_cifar100": "CIFAR-100"}
SHORT = {"accuracy_final": "Fashion-MNIST", "accuracy_cifar10": "CIFAR-10"}
"""Files of long and of short runs, and the data set of each."""

COMPARED = (
    ("coarse_adjoint", "serial"),
    ("coarse_adjoint, delayed from epoch 8", "serial"),
    ("coarse_adjoint, delayed from epoch 8", "coarse_adjoint"),
    ("coarse_adjoint, delayed from epoch 10, 18 epochs", "serial"),
    ("coarse_adjoint, tied", "serial"),
    ("coarse_adjoint, tied", "coarse_adjoint"),
    ("fdg", "serial"),
    ("coarse_adjoint", "fdg"),
    ("local", "serial"),
    ("coarse_tail", "serial"),
    ("serial, standardised", "serial"),
    ("coarse_adjoint, standardised", "coarse_adjoint"),
)
"""Rows that are compared wherever both have been run with two seeds or more."""


def paired(names: Iterable[str], *files: Json) -> str:
    """Differences seed by seed, a line a data set and pair, a column a number of stages."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for (name, made), (row, base) in itertools.product(zip(names, files, strict=True), COMPARED):
        for K in sorted({own["stages"] for own in made["rows"]}):
            if told := stats.difference(*(stats.row_of(made["rows"], of, K) for of in (row, base))):
                found.setdefault((name, f"{row} minus {base}"), {})[K] = told
    every = sorted({K for cells in found.values() for K in cells})
    shown = [[*pair, *(cells.get(K, "") for K in every)] for pair, cells in found.items()]
    return markdown.table(["", "points", *(f"K = {K}" for K in every)], shown)


def ablation(made: Json) -> str:
    """What each part of coarse_adjoint is for."""
    base = made["rows"][0]
    shown = [
        [row["row"], meaning(row["row"]), markdown.percent(row), "" if row is base else stats.difference(row, base)]
        for row in made["rows"]
    ]
    heading = [
        "",
        "",
        "test accuracy, %, mean ± std (n)",
        f"minus {base['row']}, points, mean ± standard error (seeds)",
    ]
    return markdown.table(heading, shown)


EXPERIMENT = Experiment(
    name="accuracy",
    doc=__doc__,
    run=run,
    options=(
        Option("table", None, "which table", tuple(TABLES), positional=True),
        Option("rows", None, "only these, with ; between them"),
        Option("stages", "4", "numbers of stages K"),
        Option("seeds", 3, "how many"),
        Option("first_seed", 0, "counted from here"),
        Option("jobs", 2, "runs side by side"),
        Option("runs", Path("runs/accuracy"), "folder of the runs' workdirs"),
        Option("add", False, "add to what the JSON has"),
    ),
    fields=True,
    out=lambda args: f"accuracy_{args.table}",
    show=by_stages,
    tables={
        **{name: Table(by_stages, (name,)) for name in (*LONG, *SHORT)},
        "paired_long": Table(partial(paired, LONG.values()), tuple(LONG)),
        "paired_short": Table(partial(paired, SHORT.values()), tuple(SHORT)),
        "ablation": Table(ablation, ("accuracy_ablation",)),
    },
)
