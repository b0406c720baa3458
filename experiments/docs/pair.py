"""README's two tables: accuracy and speed of the same methods with the same settings."""

from experiments.harness import markdown, stats
from experiments.harness.experiment import Json, Table
from experiments.harness.rows import load

ROWS = {
    "serial": "backprop on one device",
    "data_parallel": "data parallelism",
    "coarse_adjoint": "`method=coarse_adjoint`",
    "coarse_tail": "`method=layer_parallel`, the paper's",
    "local": "`method=local`, decoupled greedy learning",
    "fdg": "`method=delayed`, delayed gradients",
}
"""Rows of both tables, and how they are named."""

STAGES = (2, 4, 8)


def setting(path: str, fields: Json) -> str:
    """Network and data of a config file with some fields set, in words."""
    config = load(path, {**fields, "dry_run": True})
    model = ", ".join(f"{name} {value}" for name, value in config.model.arguments.items())
    images = "" if config.data.train_examples is None else f", {config.data.train_examples:,} training images"
    small = f", images averaged to 1/{config.data.shrink} of their side" if config.data.shrink > 1 else ""
    return f"`{config.model.function}` ({model}), {config.data.name}{images}{small}, batch {config.batch_size}"


def accuracy(made: Json) -> str:
    """Test accuracy by number of stages."""
    rows, shown = made["rows"], []
    base = stats.row_of(rows, "serial", STAGES[0])
    for name, words in ROWS.items():
        found = [stats.row_of(rows, name, K) for K in STAGES]
        cells = [
            "as backprop" if name == "data_parallel" else markdown.percent(row) if row else "not run" for row in found
        ]
        shown.append([words, *(cells[:1] + [""] * 2 if name in ("serial", "data_parallel") else cells)])
    heading = ["test accuracy, %, mean ± std (seeds)", *(f"K = {K}" for K in STAGES)]
    own = [(K, stats.difference(stats.row_of(rows, "coarse_adjoint", K), base)) for K in STAGES]
    minus = ", ".join(f"{told.rsplit(' (', 1)[0]} at K = {K}" for K, told in own)
    network = setting(made["config"], made["fields"])
    return (
        f"{markdown.table(heading, shown)}\n\n"
        f"{network}, {made['fields']['num_epochs']} epochs. `coarse_adjoint` minus backprop, seed by seed, in points, "
        f"mean ± standard error: {minus}."
    )


def speed(measured: Json, predicted: Json, check: Json) -> str:
    """Speed-up over backprop on one device."""
    timed = {row["row"]: row["rho"] for row in measured["measured"] if row["stages"] == STAGES[0]}
    model = {(row["row"], row["stages"]): row["rho"] for row in predicted["rows"]}
    shown = []
    for name, words in ROWS.items():
        cells = [markdown.shown(model.get((name, K)), ".2f") or "not predicted" for K in STAGES[1:]]
        shown.append([words, *(["1", "", ""] if name == "serial" else [markdown.median(timed[name]), *cells])])
    heading = ["speed-up, median (least .. most)", "K = 2, measured", *(f"K = {K}, predicted" for K in STAGES[1:])]
    errors = [row["error"] for row in check["rows"]]
    return (
        f"{markdown.table(heading, shown)}\n\n"
        f"{setting(measured['config'], {})}; the networks standardised at the cuts where measured. A device is one of "
        f"{measured['where']['cores']} CPU cores, so K = 4 and 8 are predictions of the cost model, for devices that "
        f"do not hinder each other; at K = 2 it is {max(errors):+.0%} to {min(errors):+.0%} off what was measured."
    )


TABLES = {
    "accuracy": Table(accuracy, ("accuracy_final",)),
    "speed": Table(speed, ("speedup", "tradeoff", "scale_check")),
}
