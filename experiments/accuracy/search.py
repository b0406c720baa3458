"""Settings of methods, equally many tried for each, judged on a validation split.

A trial of a row is the row with fields drawn from its method's space (`SPACES`, and --space for all rows); the first
one is the row as it is.  Data, network and length are those of a table of `accuracy`; runs are judged on the last
10,000 training images, which none trains on, with seeds from 100 on.  The test set is not looked at: the best trial of
each row goes into `accuracy` by its name.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from experiments.accuracy import accuracy
from experiments.accuracy.tables import TABLES, VALIDATION
from experiments.harness import markdown
from experiments.harness.experiment import Experiment, Json, Option
from experiments.harness.rows import Fields, fields_of
from experiments.harness.runs import cells
from lpjax.errors import BadInput

Space = dict[str, tuple[str, ...]]

COMMON: Space = {"optimizer.learning_rate": ("0.03", "0.1", "0.3"), "optimizer.weight_decay": ("1e-4", "5e-4", "1e-3")}

SPACES: dict[str, Space] = {
    "local": {"local.blocks": ("0", "1", "2")},
    "delayed": {"delayed.shrink": ("0.8", "0.9", "1.0")},
    "coarse_adjoint": {
        "aux.blocks_per_stage": ("0", "1", "2"),
        "aux.width": ("0.5", "1.0", "2.0"),
        "aux.tail": ("1", "3"),
    },
    "layer_parallel": {"penalty.initial": ("0.01", "0.1", "1.0"), "aux.blocks_per_stage": ("1", "2")},
}
"""Values of fields by method, beside `COMMON`."""


def space(text: str | None) -> Space:
    """Of --space="field=value|value;field=value|value"."""
    pairs = [part.partition("=") for part in text.split(";")] if text else []
    if any(not values for _, _, values in pairs):
        raise BadInput(f"--space={text}: expected field=value|value, with ; between fields")
    return {name: tuple(values.split("|")) for name, _, values in pairs}


def trials(row: str, more: Space, count: int, seed: int) -> list[str]:
    """Rows to try: the row itself, and others drawn from its method's space, without repetition.

    Args:
      row: See `harness.rows`.
      more: Values of fields beside the method's own.
      count: How many.
      seed: Of the draws.

    Raises:
      BadInput: The space has fewer.
    """
    values = COMMON | SPACES.get(fields_of(row)["method"], {}) | more
    every = [list(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    if count - 1 > len(every):
        raise BadInput(f"--trials={count}: expected at most {len(every) + 1} of {row!r}; widen --space")
    drawn = random.Random(seed).sample(every, count - 1)
    return [row, *(", ".join([row, *(f"{name}={value}" for name, value in fields)]) for fields in drawn)]


def run(args: argparse.Namespace) -> Iterator[Json]:
    """The JSON after every run."""
    table, more = TABLES[args.table], space(args.space)
    names = [name for row in args.rows.split(";") for name in trials(row, more, args.trials, args.draw)]
    shared: Fields = table.fields | VALIDATION | args.fields
    keys = [(name, K) for K in map(int, args.stages.split(",")) for name in names]
    fields = {(name, K): shared | fields_of(name) for name, K in keys}
    todo = cells(table.config, fields, range(100, 100 + args.seeds), args.runs / args.table)
    made = args.made | {"config": table.config, "fields": shared, "trials": args.trials}
    made["by_row"] = {name: fields_of(name) for name in names}
    yield from accuracy.trained(made, {}, todo, args.jobs, names)


def ranking(made: Json) -> str:
    """The trials, the best first."""
    rows = sorted(made["rows"], key=lambda row: (row["stages"], -row["accuracy_mean"]))
    shown = [[str(row["stages"]), row["row"], markdown.percent(row)] for row in rows]
    return markdown.table(["K", "row", "validation accuracy, %, mean ± std (seeds)"], shown)


EXPERIMENT = Experiment(
    name="search",
    doc=__doc__,
    run=run,
    options=(
        Option("table", "final", "data, network and length, see `accuracy`", tuple(TABLES)),
        Option("rows", "serial;local;fdg;coarse_adjoint", "with ; between them"),
        Option("trials", 8, "of each row"),
        Option("space", None, 'more values, as "field=value|value;field=value|value"'),
        Option("draw", 0, "seed of the draws"),
        Option("stages", "4", "numbers of stages K"),
        Option("seeds", 1, "of each trial"),
        Option("jobs", 2, "runs side by side"),
        Option("runs", Path("runs/search"), "folder of the runs' workdirs"),
    ),
    fields=True,
    out=lambda args: f"search_{args.table}",
    show=ranking,
)
