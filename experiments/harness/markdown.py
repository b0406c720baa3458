"""Markdown: tables, cells, and the files that a table is from."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, *rows)]
    lines.insert(1, "|" + "---|" * len(heading))
    return "\n".join(lines)


def source(files: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence: the files, by name, when they were made and on what hardware."""
    told = [
        f"`experiments/results/{name}.json` ({', '.join(dates(made))}; {hardware(made)})"
        for name, made in files.items()
    ]
    return f"From {', '.join(told)}."


def dates(made: Mapping[str, Any]) -> list[str]:
    """When a file was made, and when something was added to it."""
    return list(dict.fromkeys(run["date"] for run in (made, *made.get("added", ()))))


def hardware(made: Mapping[str, Any]) -> str:
    """What a file was made on, and what was added to it."""
    return " and ".join(dict.fromkeys(run["hardware"] for run in (made, *made.get("added", ()))))


def shown(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else format(value, form)


def percent(row: Mapping[str, Any]) -> str:
    """Mean, standard deviation and number of a row's accuracies, in %."""
    if row["accuracy_mean"] is None:
        return f"({row['n']})"
    scatter = "" if row["accuracy_std"] is None else f" ± {100 * row['accuracy_std']:.2f}"
    return f"{100 * row['accuracy_mean']:.2f}{scatter} ({row['n']})"


def median(values: Mapping[str, float]) -> str:
    """Of a `statistics.spread`: median (least .. most)."""
    return f"{values['median']:.2f} ({values['min']:.2f} .. {values['max']:.2f})"
