"""Accuracy against speed-up: epochs to an accuracy, what they make of a speed-up, and the cost model held to it."""

import pytest

from experiments.harness.rows import fields_of
from experiments.predict import scale_check, tradeoff
from lpjax.cost.machine import Link


def row(name, accuracies, stages=2):
    """accuracies: by seed, of each epoch."""
    runs = [
        {"seed": seed, "accuracy": [[10 * (i + 1), value] for i, value in enumerate(curve)]}
        for seed, curve in accuracies.items()
    ]
    mean = sum(curve[-1] for curve in accuracies.values()) / len(accuracies)
    return {"row": name, "stages": stages, "n": len(runs), "accuracy_mean": mean, "accuracy_std": 0.01, "runs": runs}


ROWS = [
    row("coarse_adjoint", {0: [0.3, 0.785, 0.79, 0.82], 1: [0.3, 0.6, 0.807, 0.9]}),
    row("serial", {1: [0.5, 0.804, 0.78, 0.81], 0: [0.5, 0.6, 0.78, 0.79], 2: [0.1, 0.83, 0.83, 0.83]}),
    row("local", {0: [0.3, 0.7, 0.79, 0.9], 1: [0.3, 0.6, 0.7, 0.8]}),
]


def test_time_to_accuracy():
    """Backprop ends at 0.79 and 0.81: half a point less is reached by it after the fourth epoch, by the recipe after 2
    and 3, by `local` with one seed only.  Backprop's third seed, which is there after 2, counts for itself alone.
    """
    recipe, serial, local = tradeoff.compared(
        ROWS, lambda name, K: {"rho": {"serial": 1.0, "coarse_adjoint": 1.8, "local": 1.9}[name]}
    )
    assert (recipe["epochs"], serial["epochs"], local["epochs"]) == (2.5, pytest.approx(10 / 3), None)
    assert serial["minus_serial"] == 0.0
    assert (recipe["time_to_accuracy"], serial["time_to_accuracy"]) == (pytest.approx(1.8 * 4 / 2.5), 1.0)
    assert local["time_to_accuracy"] is None
    assert recipe["minus_serial"] == pytest.approx(0.06)


@pytest.mark.parametrize("name", ["coarse_adjoint, standardised", "coarse_adjoint, delayed by cosine 0.4"])
def test_rows_of_another_network_or_of_methods_by_an_indicator_are_left_out(name):
    other = row(name, {0: [0.3, 0.6, 0.7, 0.8]})
    found = tradeoff.compared([*ROWS, other], lambda *_: {"rho": 1.0})
    assert [made["row"] for made in found] == [row["row"] for row in ROWS]


def test_a_run_in_phases_is_its_methods_by_their_epochs():
    (first, share), (second, rest) = tradeoff.in_phases("coarse_adjoint, delayed from epoch 8")
    assert (first["method"], second["method"]) == ("coarse_adjoint", "delayed")
    assert (share, rest) == (pytest.approx(8 / 15), pytest.approx(7 / 15))
    assert not [name for name in first if name.startswith("phases")]
    assert tradeoff.in_phases("coarse_adjoint") == [(fields_of("coarse_adjoint"), 1.0)]
    (_, share), _ = tradeoff.in_phases("coarse_adjoint, delayed from epoch 9, 18 epochs")
    assert share == 0.5


def test_speed_ups_of_the_model():
    """Of units that take a second a pass and two back, and links that take no time."""
    machine = scale_check.here(lambda unit, in_shape, examples: (examples, 2.0 * examples), 1e30, Link(0.0, 1e30))
    over_serial = tradeoff.model("configs/cifar10_resnet56.py", machine.unit_seconds, machine)

    def model(name, K):
        return over_serial(name, K)["rho"]

    assert model("serial", 2) == 1.0
    assert 1.5 < model("fdg", 2) <= 7 / 4 < model("local", 2) < 2.0, "a second forward pass; a classifier"
    assert model("coarse_adjoint", 4) > model("coarse_adjoint", 2)
    assert 1.0 < model("coarse_tail", 2) < 2.0
    late, early = (1 / model(f"coarse_adjoint, delayed from epoch {epoch}", 2) for epoch in (12, 8))
    rest = (early - late) / (4 / 15)  # seconds of a step by delayed gradients less one of the first, over serial's
    assert late == pytest.approx(1 / model("coarse_adjoint", 2) + rest * 3 / 15)
    assert rest > 0.01, "the forward pass of the old batch; at K = 4 cuts that are equally good, or not, by rounding"
    exact, again = over_serial("data_parallel", 2), over_serial("fdg", 2)
    assert over_serial("serial", 1) == {"rho": 1.0, "flops": 1.0, "memory": 1.0, "sent_bytes": 0}
    assert exact["flops"] == pytest.approx(1.0)
    assert again["flops"] == pytest.approx(1 + 1 / 6, abs=0.03), "half of the forward passes twice"
    assert 1.0 > exact["memory"] > over_serial("data_parallel", 4)["memory"] > 0.0
