"""When a method is left for the next one."""

import json
from dataclasses import asdict

import pytest
from helpers import small_config

from lpjax.config.schema.run import PhasesConfig
from lpjax.methods import phases
from lpjax.methods.phases import Phase

PER_EPOCH = 10


def left(series, **settings):
    """[(step, number of the method that goes on)]; the phase is written to a checkpoint and read after every step."""
    own = PhasesConfig(**{"methods": ("a", "b", "c"), "by": "cosine", "threshold": 0.3, "least_epochs": 0.0} | settings)
    phase, found = Phase(), []
    for step, value in enumerate(series, 1):
        before, phase = phase, phases.after(phase, own, step, value, PER_EPOCH)
        assert phase == phases.saved(json.loads(json.dumps({"phase": asdict(phase)})))
        if phase.number != before.number:
            assert (phase.began, phase.because, phase.measured) == (step, value, ())
            found.append((step, phase.number))
    return found


@pytest.mark.parametrize(
    "series, settings, expected",
    [
        ([0.2, 0.4] * 20, {"patience": 2}, []),
        ([0.4, 0.2, 0.4, 0.2, 0.2, 0.4, 0.4], {"patience": 2}, [(5, 1)]),
        ([0.2] * 7, {"patience": 2}, [(2, 1), (4, 2), (6, 0)]),
        ([0.3] * 9, {"patience": 1}, []),
        ([0.2] * 45, {"patience": 1, "least_epochs": 2.0}, [(20, 1), (40, 2)]),
        ([0.2] * 3 + [0.4] * 30, {"patience": 1, "least_epochs": 2.0}, []),
        ([0.4] * 25 + [0.2] * 3, {"patience": 2, "least_epochs": 2.0}, [(27, 1)]),
        ([0.2, 0.4, 0.4, 0.2, 0.2], {"patience": 2, "by": "violation", "methods": ("a", "b")}, [(3, 1)]),
        ([0.4, 0.4, 0.2, 0.4], {"patience": 1, "by": "coarse_error", "methods": ("a", "b")}, [(1, 1), (2, 0), (4, 1)]),
    ],
    ids=[
        "to and fro", "twice in a row", "back to the first", "at the threshold", "least time", "not by what was",
        "then as soon as twice in a row", "violation", "coarse error",
    ],
)  # fmt: skip
def test_a_method_is_left_when_so_many_measurements_in_a_row_are_beyond_the_threshold(series, settings, expected):
    assert left(series, **settings) == expected


def test_an_indicator_is_a_mean_of_a_metric_where_there_is_one():
    settings = {"cosine": "gradient_cosine", "violation": "relative_violation", "coarse_error": "coarse_error"}
    for by, name in settings.items():
        metrics = {other: [9.0] for other in settings.values()} | {name: [1.0, 2.0, 6.0]}
        assert phases.value(PhasesConfig(by=by), metrics) == 3.0
        assert phases.value(PhasesConfig(by=by), {"task_loss": 1.0}) is None


def test_only_of_coarse_error_zeros_are_left_out():
    """They are of stages that have none."""
    zeros, some = {"coarse_error": [0.0, 0.0], "gradient_cosine": [0.0, 0.0]}, {"coarse_error": [0.0, 2.0, 4.0, 0.0]}
    assert phases.value(PhasesConfig(by="coarse_error"), some) == 3.0
    assert phases.value(PhasesConfig(by="coarse_error"), zeros) is None
    assert phases.value(PhasesConfig(by="cosine"), zeros) == 0.0


BOTH = {"phases__methods": ("layer_parallel", "serial")}
COARSE = {
    "phases__methods": ("coarse_adjoint", "delayed"),
    "phases__by": "coarse_error",
    "phases__threshold": 0.1,
}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"phases__threshold": 0.5}, "phases.threshold=0.5 with phases.by=epochs.*set phases.by to one of cosine"),
        ({"phases__patience": 2}, "phases.patience=2 with phases.by=epochs"),
        ({"phases__least_epochs": 0.5}, "phases.least_epochs=0.5 with phases.by=epochs"),
        ({"phases__every": 10}, "phases.every=10 with phases.by=epochs: it is of an indicator"),
        ({"phases__by": "cosine", "phases__threshold": 0.5}, r"phases.methods=\(\): expected two methods or more"),
        (
            {"phases__methods": ("serial", "local"), "phases__by": "cosine", "phases__threshold": 0.5},
            "the gradient of serial is backprop's, their cosine is 1, and it would never be left; put it last",
        ),
        (BOTH | {"phases__by": "cosine"}, "phases.threshold=None with phases.by=cosine: expected a number > -1 and <"),
        (BOTH | {"phases__by": "violation", "phases__threshold": 0.0}, "expected a number > 0, above which"),
        (
            BOTH | {"phases__by": "violation", "phases__threshold": 0.1, "phases__epochs": (1.0,)},
            r"phases.epochs=\(1.0,\) with phases.by=violation: expected none",
        ),
        (
            {"phases__methods": ("serial", "layer_parallel"), "phases__by": "violation", "phases__threshold": 0.1},
            "method=serial, which has no relative_violation and would never be left: .* put it last, or set",
        ),
        (
            BOTH | {"phases__by": "violation", "phases__threshold": 0.1, "num_stages": 1},
            "num_stages=1, so that there is no interface: expected at least 2",
        ),
        (BOTH | {"phases__by": "violation", "phases__threshold": 0.1, "phases__patience": 0}, "expected at least 1"),
        (COARSE | {"num_stages": 2}, "phases.by=coarse_error with num_stages=2: expected at least 3"),
        (COARSE | {"num_stages": 4, "penalty__aux": 0.0}, "phases.by=coarse_error with penalty.aux=0"),
    ],
)  # fmt: skip
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(**fields)
