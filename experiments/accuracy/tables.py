"""The accuracy tables: their rows, and what all runs of one share.

The protocol was written before any search: docs/results/accuracy.md.
"""

from dataclasses import dataclass, field

from experiments.harness.rows import Fields

CONFIG = "configs/fashion_mnist_small.py"

PROTOCOL: Fields = {
    "data.train_examples": 10_000,
    "num_epochs": 15,
    "eval.every_epochs": 1,
    "eval.calibration_batches": 20,
    "mesh.stage": 1,
}
"""What all runs on small images share, beside the config file.  They are tested after every epoch, so that a table also
tells when a method got where; nothing is chosen by it."""

VALIDATION: Fields = {"data.validation_examples": 10_000, "eval.every_epochs": 0}
"""Of a search: the last training images in place of the test set, which is not looked at."""

CIFAR: Fields = {"data.crop": 2}
"""Images of 16x16; half of the usual four pixels of padding."""


@dataclass(frozen=True)
class Table:
    """A table of accuracies.

    Attributes:
      rows: See `harness.rows`.
      fields: That all of them have.
      config: The config file.
    """

    rows: tuple[str, ...]
    fields: Fields = field(default_factory=lambda: PROTOCOL)
    config: str = CONFIG


METHODS = (
    "serial",
    "serial, standardised",
    "coarse_adjoint",
    "coarse_adjoint, standardised",
    "coarse_adjoint, delayed from epoch 8",
    "coarse_adjoint, delayed from epoch 10, 18 epochs",
    "coarse_adjoint, tied",
    "coarse_adjoint, no block",
    "coarse_adjoint, quarter grid",
    "local",
    "fdg",
    "coarse_tail",
)

ABLATION = (
    "coarse_adjoint",
    *(f"coarse_adjoint, {change}" for change in ("no fit", "no task loss", "tail 1", "tail 0", "no block", "2 blocks")),
    *(f"coarse_adjoint, {change}" for change in ("half width", "quarter grid", "own maps", "standardised")),
    "coarse_tail",
    "coarse_tail, 3 sweeps",
    "coarse_tail, stale",
    "local",
)
"""One thing changed at a time."""

PUBLISHED = {
    "cifar10_resnet110": 82,
    "cifar10_wrn16_4": 100,
    "cifar100_wrn28_10": 100,
    "cifar100_wrn40_4": 100,
    "imagenet_resnet18": 45,
    "imagenet_resnet50": 45,
}
"""Config files of full-size tables, for whoever has the data, and half the epochs of each."""


def _published(name: str, middle: int) -> Table:
    own = ("coarse_adjoint", f"coarse_adjoint, delayed from epoch {middle}", "coarse_adjoint, tied")
    return Table((*own, "serial", "local", "fdg"), {"mesh.stage": 1}, f"configs/{name}.py")


TABLES = {
    "final": Table(METHODS),
    "ablation": Table(ABLATION),
    "deep": Table(METHODS, PROTOCOL | {"model.depth": 56}),
    "cifar10": Table(METHODS, PROTOCOL | CIFAR | {"data.name": "cifar10"}),
    "cifar100": Table(METHODS, PROTOCOL | CIFAR | {"data.name": "cifar100", "data.train_examples": 50_000}),
    "digits": Table(
        ("serial", "coarse_adjoint", "coarse_adjoint, no block", "local", "fdg", "coarse_tail"),
        {"mesh.stage": 1, "eval.every_epochs": 0},
        "configs/digits.py",
    ),
    **{name: _published(name, middle) for name, middle in PUBLISHED.items()},
}
