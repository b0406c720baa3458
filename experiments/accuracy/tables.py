"""The accuracy tables: their rows, and what all runs of one share.

The protocol was written before any search: docs/results/accuracy.md.
"""

from typing import NamedTuple

from experiments.harness.rows import Fields

PROTOCOL: Fields = {"data.train_examples": 10_000, "num_epochs": 15, "eval.every_epochs": 1, "mesh.stage": 1}
PROTOCOL |= {"eval.calibration_batches": 20}
"""What all runs on small images share.  Tests after every epoch tell when a method got where, and choose nothing."""

VALIDATION: Fields = {"data.validation_examples": 10_000, "eval.every_epochs": 0}  # in place of the test set
CIFAR: Fields = {"data.crop": 2}  # images of 16x16: half of the usual four pixels of padding


class Table(NamedTuple):
    """A table of accuracies: rows, the fields that all of them have, the config file, and the first seed."""

    rows: tuple[str, ...]
    fields: Fields = PROTOCOL
    config: str = "configs/fashion_mnist_small.py"
    first_seed: int = 0


def _rows(method: str, *changes: str) -> tuple[str, ...]:
    return (method, *(f"{method}, {change}" for change in changes))


METHODS = (
    *_rows("serial", "standardised"),
    *_rows("coarse_adjoint", "standardised", "delayed from epoch 8", "delayed from epoch 10, 18 epochs"),
    *_rows("coarse_adjoint", "tied", "no block", "quarter grid")[1:],
    *("local", "fdg", "coarse_tail"),
)

DEEP = (*_rows("serial", "deep supervision 0.1"), *_rows("coarse_adjoint", "tied"), "local, sampled", "coarse_tail")
DEEP += _rows("fdg", "8 micro-batches", "16 micro-batches")[1:]

ABLATION = (
    *_rows("coarse_adjoint", "no fit", "no task loss", "tail 1", "tail 0", "no block", "2 blocks", "half width"),
    *_rows("coarse_adjoint", "quarter grid", "own maps", "standardised")[1:],
    *(*_rows("coarse_tail", "3 sweeps", "stale"), "local"),
)
"""One thing changed at a time."""

HALF = {"cifar10_resnet110": 82, "cifar10_wrn16_4": 100, "cifar100_wrn28_10": 100, "cifar100_wrn40_4": 100}
HALF |= {"imagenet_resnet18": 45, "imagenet_resnet50": 45}
"""Config files of full-size tables, for whoever has the data, and half the epochs of each."""

TABLES = {
    "final": Table(METHODS),
    "search": Table(("serial", "local", "fdg", "coarse_adjoint"), PROTOCOL | VALIDATION, first_seed=100),
    "final_all": Table(METHODS, PROTOCOL | {"data.train_examples": 60_000}),
    "ablation": Table(ABLATION),
    "deep": Table(DEEP, PROTOCOL | {"model.depth": 56}),
    "cifar10": Table(METHODS, PROTOCOL | CIFAR | {"data.name": "cifar10"}),
    "cifar100": Table(METHODS, PROTOCOL | CIFAR | {"data.name": "cifar100", "data.train_examples": 50_000}),
    "digits": Table(METHODS, {"mesh.stage": 1, "eval.every_epochs": 0}, "configs/digits.py"),
}
for _name, _middle in HALF.items():
    _all = (*_rows("coarse_adjoint", f"delayed from epoch {_middle}", "tied"), "serial", "local", "fdg")
    TABLES[_name] = Table(_all, {"mesh.stage": 1}, f"configs/{_name}.py")
