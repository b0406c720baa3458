"""README's two tables: accuracy and speed of the same methods with the same settings."""

from experiments.harness import markdown, stats
from experiments.harness.experiment import Json, Table
from experiments.harness.rows import images, load

ROWS = {
    "serial": "backprop on one device",
    "data_parallel": "data parallelism",
    "coarse_adjoint": "`method=coarse_adjoint`",
    "coarse_tail": "`method=layer_parallel`, the paper's",
    "local": "`method=local`, decoupled greedy learning",
    "fdg": "`method=delayed`, delayed gradients",
    "pipeline, 8 micro-batches": "`method=pipeline`, M = 8 micro-batches",
    "fdg, 8 micro-batches": "`method=delayed`, M = 8 micro-batches",
}
FASTER = {"fdg, 8 micro-batches, delayed.keep=activations": "the same, activations kept"}
"""Rows of the same numbers."""

STAGES = (2, 4, 8)
NETWORKS = {"resnet": "ResNet-{depth} of width {width}", "wide_resnet": "WRN-{depth}-{widen}"}
SETS = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "the digits"}


def setting(path: str, fields: Json) -> tuple[str, str]:
    """Network, and images, of a config file with some fields set, in words."""
    config = load(path, {**fields, "dry_run": True})
    spec = images(config.data)
    height, width, _ = spec.image_shape
    network = f"{NETWORKS[config.model.function].format(**config.model.arguments)}, batch {config.batch_size}"
    return network, f"{spec.num_train:,} images of {SETS[config.data.name]} at {height}x{width}"


def accuracy(made: Json) -> str:
    """Test accuracy by number of stages."""
    rows, shown = made["rows"], []
    for name, words in ROWS.items():
        found = [stats.row_of(rows, name, K) for K in STAGES]
        told = [markdown.percent(row) if row else "not run" for row in found]
        same = told[0] if name == "serial" else "as backprop" if name.startswith(("data", "pipe")) else ""
        shown.append([words, *([same, "", ""] if same else told)])
    heading = ["test accuracy, %, mean ± std (seeds)", *(f"K = {K}" for K in STAGES)]
    pairs = {K: [stats.row_of(rows, name, K) for name in ("coarse_adjoint", "serial")] for K in STAGES}
    minus = ", ".join(f"{stats.difference(*pair).rsplit(' (', 1)[0]} at K = {K}" for K, pair in pairs.items())
    network, data = setting(made["config"], made["fields"])
    return (
        f"{markdown.table(heading, shown)}\n\n{network}, {made['fields']['num_epochs']} epochs of {data}. "
        f"`coarse_adjoint` minus backprop, seed by seed, in points, mean ± standard error: {minus}."
    )


def speed(measured: Json, micro: Json, predicted: Json, check: Json) -> str:
    """Speed-up over backprop on one device; `micro` has methods by micro-batches, predicted from their parts."""
    every = micro["measured"] + measured["measured"]
    timed = {row["row"]: row["rho"] for row in every if row["stages"] == STAGES[0]}
    model = {(row["row"], row["stages"]): row["rho"] for row in predicted["rows"] + micro["predictions"]}
    shown = []
    for name, words in (ROWS | FASTER).items():
        cells = [markdown.shown(model.get((name, K)), ".2f") or "not predicted" for K in STAGES[1:]]
        told = markdown.median(timed[name]) if name in timed else "not measured"
        shown.append([words, *(["1", "", ""] if name == "serial" else [told, *cells])])
    heading = ["speed-up, median (least .. most)", "K = 2, measured", *(f"K = {K}, predicted" for K in STAGES[1:])]
    errors = [row["error"] for row in check["rows"]]
    network, _ = setting(measured["config"], {})
    beside = next(row["rho"] for row in micro["measured"] if row["row"] == "data_parallel")
    return (
        f"{markdown.table(heading, shown)}\n\n{network}; the networks standardised at the cuts where measured. "
        f"A device is one of {measured['where']['cores']} CPU cores, so K = 4 and 8 are predictions of the cost model "
        "(M = 8: from a step's parts, without copies to and from rings), for devices that do not hinder each other; "
        f"at K = 2 it is {max(errors):+.0%} to {min(errors):+.0%} off what was measured. M = 8 was measured in another "
        f"run, where cores hindered each other more: data parallelism had {markdown.median(beside)}."
    )


TABLES = {
    "accuracy": Table(accuracy, ("accuracy_final",)),
    "speed": Table(speed, ("speedup", "speedup_micro_batches", "tradeoff", "scale_check")),
}
