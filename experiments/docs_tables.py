"""The tables of README.md and of pages in docs/, from the files in experiments/results/; nothing is run.

    python -m experiments.docs_tables [--root=.]

Writes each between `<!-- NAME -->` and `<!-- end -->` of a page.  To be called when one of the files has changed.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import (
    accuracy,
    compare,
    compile_time,
    digits_policies,
    fashion_mnist_epoch,
    feed_rate,
    kill_loop,
    levers,
    memory,
    mesh_agreement,
    recalibration,
    scale,
    speedup_tables,
    tradeoff,
)
from experiments.accuracy import FINALS
from experiments.compare import ROWS

RESULTS = Path(__file__).parent / "results"

SPEEDS = {"speedup": "ResNet-110", "speedup_wrn16_4": "WRN-16-4"}
"""Files of `experiments.speedup`, and the network of each."""


def result(name: str) -> dict[str, Any]:
    """A file of experiments/results/."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *names: str) -> str:
    """A Markdown table and the files it is from."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, *rows)]
    lines.insert(1, "|" + "---|" * len(heading))
    files = ", ".join(f"`experiments/results/{name}.json` ({dates(result(name))})" for name in names)
    return "\n".join([*lines, "", f"From {files}."])


def dates(made: dict[str, Any]) -> str:
    """When a file was made, and what was added to it."""
    return ", ".join(dict.fromkeys(run["date"] for run in (made, *made.get("added", ()))))


def percent(row: dict[str, Any], name: str = "test_accuracy") -> str:
    """Mean, standard deviation and number of a row's accuracies, in %.  name: of them, in the file."""
    scatter = f" ± {100 * row[f'{name}_std']:.2f}" if row["n"] > 1 else ""
    return f"{100 * row[f'{name}_mean']:.2f}{scatter} ({row['n']})"


def fields_of(row: str) -> str:
    """What a row of `experiments.compare` sets, with the method where that is not layer_parallel."""
    fields = ROWS.get(row, {}).items()
    own = {name: value for name, value in fields if value != "layer_parallel"}
    return ", ".join(f"`{name}={value}`" for name, value in own.items())


def points(row: dict[str, Any], base: dict[str, Any], name: str = "test_accuracy") -> str:
    """Difference of two rows' accuracies, in percentage points."""
    return f"{100 * (row[f'{name}_mean'] - base[f'{name}_mean']):+.2f}"


def longer() -> str:
    """Accuracy of the longer runs of `experiments.accuracy` over K, beside backprop."""
    rows = result("accuracy_final")["rows"]
    every = sorted({row["stages"] for row in rows})

    def cell(name: str, K: int) -> str:
        row, base = (accuracy.row_of(rows, of, K) for of in (name, "serial"))
        if row is None:
            return ""
        return percent(row, "accuracy") + (f", {points(row, base, 'accuracy')}" if base and row is not base else "")

    names = ["serial", *(name for name in dict.fromkeys(row["row"] for row in rows) if name != "serial")]
    fields = [
        ", ".join(
            f"`{field}`" if value is True else f"`{field}={value}`"
            for field, value in FINALS[name].items()
            if value is not None
        )
        for name in names
    ]
    shown = [[own, *(cell(name, K) for K in every)] for name, own in zip(names, fields, strict=True)]
    return table(["", *(f"K = {K}: test accuracy, %" for K in every)], shown, "accuracy_final")


PAIRS = {
    "accuracy_final": (
        *((K, "recipe", "serial") for K in (2, 3, 4, 8)),
        *((K, "recipe, delayed from epoch 8", "recipe") for K in (2, 3, 4)),
        *((K, "recipe, delayed from epoch 8", "serial") for K in (2, 3, 4)),
        *((K, "fdg", "serial") for K in (2, 3, 4, 8)),
        *((K, "local", "serial") for K in (2, 3, 4, 8)),
        *((8, "recipe, tied", base) for base in ("recipe", "serial")),
    ),
    "accuracy_cifar10": (
        *((K, "recipe", "serial") for K in (2, 3, 4, 8)),
        *((K, "recipe, delayed from epoch 8", "recipe") for K in (2, 4)),
        *((8, "recipe, tied", base) for base in ("recipe", "serial")),
        *((K, "fdg", "serial") for K in (2, 4, 8)),
        *((K, "local", "serial") for K in (2, 4, 8)),
    ),
    "accuracy_cifar100": (
        (4, "recipe", "serial"),
        *((4, "recipe, delayed from epoch 8", base) for base in ("recipe", "serial")),
    ),
    "accuracy_cifar10_all": (
        (2, "recipe", "serial"),
        (2, "recipe, delayed from epoch 8", "recipe"),
        (2, "recipe, delayed from epoch 8", "serial"),
        (4, "recipe", "serial"),
        (4, "fdg", "serial"),
        (4, "recipe", "fdg"),
        (4, "recipe, delayed from epoch 8", "recipe"),
        (4, "recipe, delayed from epoch 8", "serial"),
        (4, "recipe, delayed from epoch 10 of 18", "serial"),
        (8, "recipe", "serial"),
        (8, "recipe, tied", "recipe"),
        (8, "recipe, tied", "serial"),
        (8, "fdg", "serial"),
        (8, "fdg", "recipe"),
        (2, "serial, standardised", "serial"),
        (8, "serial, standardised", "serial"),
        (2, "recipe, standardised", "recipe"),
        (8, "recipe, standardised", "recipe"),
    ),
}
"""Number of stages, row, and what it is compared with, by file of `experiments.accuracy`."""

SETS = {
    "accuracy_final": "Fashion-MNIST",
    "accuracy_cifar10": "CIFAR-10, 10,000 images",
    "accuracy_cifar100": "CIFAR-100, all images",
    "accuracy_cifar10_all": "CIFAR-10, all images",
}


def seed_by_seed(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Difference of two rows of `experiments.accuracy` in points, by the seeds of `row`: mean ± standard error (n)."""
    own, other = ({run["seed"]: run["test_accuracy"] for run in r["runs"]} for r in (row, base))
    found = [100 * (own[seed] - other[seed]) for seed in own]
    error = statistics.stdev(found) / len(found) ** 0.5
    return f"{statistics.mean(found):+.2f} ± {error:.2f} ({len(found)})"


def paired() -> str:
    """Differences of rows seed by seed."""
    shown = []
    for file, pairs in PAIRS.items():
        rows = result(file)["rows"]
        for K, name, base in pairs:
            row, other = (accuracy.row_of(rows, of, K) for of in (name, base))
            if row is None or other is None:
                raise ValueError(f"{file}: no runs of {name!r} or {base!r} at K = {K}: expected by PAIRS")
            shown.append([SETS[file], str(K), name, base, seed_by_seed(row, other)])
    return table(["", "K", "", "minus", "points, mean ± standard error (seeds)"], shown, *PAIRS)


def ablation() -> str:
    """What each part of the recipe is for."""
    rows = result("accuracy_ablation")["rows"]
    (recipe,) = (row for row in rows if row["row"] == "recipe")
    shown = [[row["row"], percent(row, "accuracy"), "" if row is recipe else seed_by_seed(row, recipe)] for row in rows]
    heading = ["", "test accuracy, %, mean ± std (n)", "minus recipe, points, mean ± standard error (seeds)"]
    return table(heading, shown, "accuracy_ablation")


def stages() -> str:
    """Accuracy of layer-parallel rows over K, beside backprop."""
    rows = result("compare")["rows"]
    shown = []
    for row in rows:
        if ROWS.get(row["row"], {}).get("method") == "layer_parallel":
            (base,) = [r for r in rows if (r["row"], r["stages"]) == ("serial", row["stages"])]
            shown.append([str(row["stages"]), fields_of(row["row"]), percent(row), points(row, base)])
    return table(["K", "", "test accuracy, %, mean ± std (n)", "minus backprop, points"], shown, "compare")


def speed() -> str:
    """Predicted speed-ups over K."""
    shown = []
    for name, network in SPEEDS.items():
        for p in result(name)["predictions"]:
            rest = f"{p['not_stage']:.1%}"
            shown.append([network, fields_of(p["row"]), str(p["stages"]), f"{p['rho']:.2f}", rest])
    heading = ["network", "", "K", "rho, predicted", "of a step, not stages"]
    return table(heading, shown, *SPEEDS)


def aux() -> str:
    """What a cheaper AuxNet, tail or exchange costs in accuracy."""
    rows = {row["row"]: row for row in result("price")["rows"]}
    shown = [
        [
            "backprop" if name == "serial" else name,
            fields_of(name),
            percent(row),
            points(row, rows["coarse_tail"]),
            f"{row['exchanged_bytes'] / 1e6:.2f}",
        ]
        for name, row in rows.items()
    ]
    heading = ["", "", "test accuracy, %, mean ± std (n)", "minus coarse_tail, points", "MB sent a step"]
    return table(heading, shown, "price")


def policies() -> str:
    """Policies on the digits."""
    rows = result("digits_policies")["rows"]
    shown = []
    for name, row in rows.items():
        base = rows["serial backprop, no augmentation" if "per_example" in name else "serial backprop"]
        difference = "" if name.startswith("serial") else points(row, base)
        shown.append([name, percent(row), difference, ", ".join(f"{r:.3f}" for r in row["relative_violation_mean"])])
    heading = ["policy", "test accuracy, %, mean ± std (n)", "minus backprop, points", "relative violations"]
    return table(heading, shown, "digits_policies")


def faster() -> str:
    """Measured speed-ups of all methods."""
    shown = []
    for name, network in SPEEDS.items():
        for m in result(name)["measured"]:
            if not m["row"].startswith("serial"):
                rho = m["rho"]
                measured = f"{rho['median']:.2f} ({rho['min']:.2f} .. {rho['max']:.2f})"
                shown.append([network, str(m["stages"]), m["row"], measured])
    heading = ["network", "K", "method", "speed-up against one core, median (least .. most)"]
    return table(heading, shown, *SPEEDS)


def gap() -> str:
    """Accuracy of all methods at each K."""
    rows = result("compare")["rows"]
    every = sorted({row["stages"] for row in rows})
    cells = {(row["row"], row["stages"]): percent(row) for row in rows}
    names = list(dict.fromkeys(row["row"] for row in rows))
    shown = [[name, *(cells.get((name, K), "") for K in every)] for name in names]
    return table(["method", *(f"K = {K}: test accuracy, %" for K in every)], shown, "compare")


def large() -> str:
    """Predicted speed on large machines against the faster of data parallelism and a pipeline."""
    found, parts = result("scale"), []
    for machine in scale.CAPACITY:
        parts += [f"{machine}:", scale.leads(found["rows"], machine, "own", *scale.RIVALS)]
    return "\n\n".join([*parts, f"From `experiments/results/scale.json` ({found['date']})."])


def of_rows(experiment: Any, name: str) -> Callable[[], str]:
    """What an experiment's `markdown` makes of the rows of its file."""
    return lambda: experiment.markdown(result(name)["rows"])


def of_all(experiment: Any, name: str) -> Callable[[], str]:
    """What an experiment's `markdown` makes of its whole file."""
    return lambda: experiment.markdown(result(name))


README: dict[str, Callable[[], str]] = {
    "digits": of_rows(digits_policies, "digits_policies"),
    "fashion": of_rows(fashion_mnist_epoch, "fashion_mnist_epoch"),
    "compile": of_rows(compile_time, "compile_time"),
    "mesh": of_rows(mesh_agreement, "mesh_agreement"),
    "feed": of_rows(feed_rate, "feed_rate"),
    "kills": of_rows(kill_loop, "kill_loop"),
    "compare": of_rows(compare, "compare"),
    "accuracy": of_rows(accuracy, "accuracy_final"),
    "accuracy_cifar10": of_rows(accuracy, "accuracy_cifar10"),
    "accuracy_cifar100": of_rows(accuracy, "accuracy_cifar100"),
    "accuracy_cifar10_all": of_rows(accuracy, "accuracy_cifar10_all"),
    "accuracy_deep": of_rows(accuracy, "accuracy_deep"),
    "accuracy_digits": of_rows(accuracy, "accuracy_digits"),
    "tradeoff": of_rows(tradeoff, "tradeoff"),
    "tradeoff_all": of_rows(tradeoff, "tradeoff_all"),
    "levers": of_rows(levers, "levers"),
    "memory": of_rows(memory, "memory"),
    **{name: of_all(speedup_tables, name) for name in SPEEDS},
}

TABLES: dict[str, Callable[[], str]] = README | {
    "recalibration": of_rows(recalibration, "recalibration"),
    **{make.__name__: make for make in (longer, paired, ablation, stages, speed, aux, policies, faster, gap, large)},
}


def filled(text: str) -> str:
    """A page with its tables as the results have them."""

    def with_table(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->\n.*?<!-- end -->", with_table, text, flags=re.DOTALL)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, default=Path("."))
    args = parser.parse_args(argv)
    for page in (args.root / "README.md", *sorted((args.root / "docs").glob("*.md"))):
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
            print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
