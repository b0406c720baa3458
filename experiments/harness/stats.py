"""Means, standard deviations, and differences seed by seed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]


def summary(row: str, num_stages: int, runs: list[Json]) -> Json:
    """A row of a JSON: the runs' accuracies, mean and sample standard deviation."""
    found = [run["test_accuracy"] for run in runs]
    std = statistics.stdev(found) if len(found) > 1 else None
    told = {"row": row, "stages": num_stages, "n": len(runs)}
    return told | {"accuracy_mean": statistics.mean(found), "accuracy_std": std, "runs": runs}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def row_of(rows: Sequence[Json], name: str, num_stages: int) -> Json | None:
    """A row of a JSON; of backprop, whose network has no cuts, that of any number of stages."""
    named = {row["stages"]: row for row in rows if row["row"] == name}
    anywhere = name.startswith("serial") and not any(change in name for change in ("standardised", "supervision"))
    return named.get(num_stages) or (next(iter(named.values()), None) if anywhere else None)


def difference(row: Json | None, base: Json | None) -> str:
    """Accuracy of a row minus another's in points, over the seeds that both have: mean ± standard error (seeds).

    Nothing where a row is missing, or with fewer than two seeds.
    """
    own, other = ({run["seed"]: run["test_accuracy"] for run in r["runs"]} if r else {} for r in (row, base))
    found = [100 * (own[seed] - other[seed]) for seed in own if seed in other]
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
    return "" if error is None else f"{statistics.mean(found):+.2f} ± {error:.2f} ({len(found)})"


def medians(timed: Sequence[Mapping[str, Any]]) -> Json:
    """Median of each name's values; of lists, of their elements one by one."""
    found = {name: [own[name] for own in timed] for name in timed[0]}
    lists = {name: values for name, values in found.items() if isinstance(values[0], list)}
    told = {name: statistics.median(values) for name, values in found.items() if name not in lists}
    return told | {name: [statistics.median(own) for own in zip(*lists[name], strict=True)] for name in lists}
