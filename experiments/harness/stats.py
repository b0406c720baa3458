"""Means, standard deviations, and differences seed by seed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]


def summary(row: str, num_stages: int, runs: list[Json]) -> Json:
    """A row of a JSON: the runs' accuracies, mean and sample standard deviation."""
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        "row": row,
        "stages": num_stages,
        "n": len(runs),
        "accuracy_mean": statistics.mean(accuracies) if runs else None,
        "accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "runs": runs,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def row_of(rows: Sequence[Json], name: str, num_stages: int) -> Json | None:
    """A row of a JSON.

    Backprop's row `serial` does for every number of stages: its network has no cuts.
    """
    named = {row["stages"]: row for row in rows if row["row"] == name}
    return named.get(num_stages) or (next(iter(named.values()), None) if name == "serial" else None)


def paired(row: Json, base: Json) -> tuple[float, float, int] | None:
    """Accuracy of a row minus another's, seed by seed, over the seeds that both have.

    Returns:
      Mean and standard error in points, and the number of seeds; None with fewer than two.
    """
    own, other = ({run["seed"]: run["test_accuracy"] for run in r["runs"]} for r in (row, base))
    found = [100 * (own[seed] - other[seed]) for seed in own if seed in other]
    if len(found) < 2:
        return None
    return statistics.mean(found), statistics.stdev(found) / len(found) ** 0.5, len(found)


def difference(row: Json | None, base: Json | None) -> str:
    """`paired` as a table's cell; nothing where one row is missing."""
    found = paired(row, base) if row and base else None
    return "" if found is None else f"{found[0]:+.2f} ± {found[1]:.2f} ({found[2]})"


def medians(timed: Sequence[Mapping[str, Any]]) -> Json:
    """Median of each name's values; of lists, of their elements one by one."""

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [statistics.median(own) for own in zip(*values, strict=True)]
        return statistics.median(values)

    return {name: median([own[name] for own in timed]) for name in timed[0]}
