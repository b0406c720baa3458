"""Markdown: tables, cells, and the files that a table is from."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, *rows)]
    lines.insert(1, "|" + "---|" * len(heading))
    return "\n".join(lines)


def source(files: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence: the files, by name, when they were made and added to, and on what hardware."""
    told = []
    for name, made in files.items():
        dates, hardware = ([run[key] for run in (made, *made.get("added", ()))] for key in ("date", "hardware"))
        when = f"{', '.join(dict.fromkeys(dates))}; {' and '.join(dict.fromkeys(hardware))}"
        told.append(f"`experiments/results/{name}.json` ({when})")
    return f"From {', '.join(told)}."


def shown(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, form)


def percent(row: Mapping[str, Any]) -> str:
    """Mean, standard deviation and number of a row's accuracies, in %."""
    scatter = "" if row["accuracy_std"] is None else f" ± {100 * row['accuracy_std']:.2f}"
    return f"{100 * row['accuracy_mean']:.2f}{scatter} ({row['n']})"


def median(values: Mapping[str, float]) -> str:
    """Of a `statistics.spread`: median (least .. most)."""
    return f"{values['median']:.2f} ({values['min']:.2f} .. {values['max']:.2f})"
