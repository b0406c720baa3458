"""Runs that go on: bit for bit on the same mesh, by value on another mesh, another K or another method."""

import io
import json
import unittest.mock

import jax
import numpy as np
import pytest
from helpers import assert_close, on_host, small_run
from rich.console import Console

from lpjax.methods import METHODS
from lpjax.state import canonical
from lpjax.training import checkpoint, identity, loop, resume, workdir
from lpjax.training.workdir import CLOCK, WorkdirError

POLICIES = {
    "coarse_tail": {},
    "mean": {"penalty__sweeps": 1},
    "per_example": {"data__crop": 0, "mesh__stage": 2},
    "adamw": {"optimizer": {"name": "adamw", "learning_rate": 1e-3, "warmup_epochs": 0.5}, "multiplier": "adjoint"},
    "serial": {"method": "serial", "mesh__data": 2, "optimizer__accumulate": 4},
    "deep supervision": {"method": "data_parallel", "mesh__data": 2, "mesh__stage": 1, "serial__deep_supervision": 0.3},
    "stale": {"exchange": {"stale": True}, "mesh__stage": 2, "mesh__data": 2},
    "one stage": {"num_stages": 1},
    "by batch": {
        "method": "delayed",
        "delayed": {"micro_batches": 4, "weights": "batch"},
        "optimizer": {"name": "nadam", "learning_rate": 1e-3, "b1": 0.99, "age_discount": 1.0},
        "mesh__data": 2,
    },
    "activations": {"method": "delayed", "delayed": {"micro_batches": 4, "keep": "activations"}},
    "corrected": {"method": "corrected", "mesh__data": 2},
    "no standardisation": {"standardise": False, "aux__inner_steps": 2, "mesh__stage": 1},
}
TWO = {"num_stages": 2, "cuts": (2,)}


def settings(name):
    return POLICIES[name] | ({"multiplier": name} if name in ("mean", "per_example") else {})


def trained(workdir, **fields):
    """What is said, and the arrays of the last checkpoint."""
    console = Console(file=io.StringIO(), width=1000)
    run = small_run(**{"batch_size": 128, "log_every": 2, "eval__every_epochs": 1} | fields)
    workdir.mkdir(exist_ok=True)
    loop.train(run, workdir, console)
    saved, _ = checkpoint.newest_good(workdir / "checkpoints")
    return console.file.getvalue(), saved.arrays


def metrics_of(workdir):
    """The lines of metrics.jsonl without the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


@pytest.mark.parametrize("name", POLICIES)
def test_arrays_and_back(name):
    """A state becomes named arrays and the same state again, after a step that fills every part of it."""
    run = small_run(**settings(name))
    state, _ = run.step(run.create(), next(run.feed.train()))
    expected = on_host(state)
    restored, fresh, left = resume.restore(run, resume.snapshot(run, state))
    assert (fresh, left) == ([], [])
    assert_close(on_host(restored), expected, rtol=0, atol=0)
    assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [leaf.sharding for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize(
    "name, half",
    [
        ("deep supervision", 8),
        ("by batch", 7),
        *(
            pytest.param(*own, marks=pytest.mark.slow)
            for own in (("serial", 8), ("coarse_tail", 7), ("stale", 7), ("per_example", 11))
        ),
    ],
)
def test_two_halves_are_the_whole(name, half, tmp_path):
    """In every array and every line, whether the first half ends at a test, a logged step or neither."""
    _, expected = trained(tmp_path / "whole", **settings(name), num_steps=13)
    trained(tmp_path / "halves", **settings(name), num_steps=half)
    said, arrays = trained(tmp_path / "halves", **settings(name), num_steps=13)
    assert f"going on from the checkpoint of step {half}" in said
    assert_same(arrays, expected)
    assert metrics_of(tmp_path / "halves") == metrics_of(tmp_path / "whole")


def test_the_first_resumed_step_reuses_its_buffers():
    """What is restored is given up to the step like any other state, and the step is compiled once."""
    run = small_run()
    batches = run.feed.train()
    state, _ = run.step(run.create(), next(batches))
    restored, _, _ = resume.restore(run, resume.snapshot(run, state))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **kwargs: compiled.append(kwargs.get("fun_name")) if "backend_compile" in event else None
    )
    batch = next(batches)
    compiled.clear()
    run.step(restored, batch)
    assert not [name for name in compiled if name and "step" in name.lower()], compiled
    kept = [path for path, leaf in jax.tree.leaves_with_path(restored) if not leaf.is_deleted()]
    assert not kept, kept


@pytest.mark.parametrize(
    "name, mesh",
    [
        ("per_example", {"mesh__stage": 1}),
        ("per_example", {"mesh__stage": 2, "mesh__data": 2}),
        ("activations", {"mesh__stage": 2, "mesh__data": 2}),
    ],
)
def test_another_mesh(name, mesh, x64):
    """A table of multipliers is of another length there; activations that are kept lie otherwise."""
    run, other = (small_run(**settings(name) | fields) for fields in ({}, mesh))
    batches, others = run.feed.train(), other.feed.train()
    state = run.create()
    for _ in range(3):
        state, _ = run.step(state, next(batches))
        next(others)
    arrays = resume.snapshot(run, state)
    restored, fresh, left = resume.restore(other, arrays)
    assert (fresh, left) == ([], [])
    assert_same(
        *({n: a for n, a in own.items() if ".kept." not in n} for own in (resume.snapshot(other, restored), arrays))
    )
    for _ in range(2):
        state, figures = run.step(state, next(batches))
        restored, other_figures = other.step(restored, next(others))
        assert_close(jax.device_get(other_figures), jax.device_get(figures))
    expected = resume.snapshot(run, state)
    for name, value in resume.snapshot(other, restored).items():
        if ".kept." not in name:
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_another_number_of_stages(tmp_path):
    """From interfaces 1, 2, 3 to interface 2 and back: what is beside it carries over, and the rest is said."""
    _, four = trained(tmp_path / "four", multiplier="mean", num_steps=4)
    two = {**TWO, "multiplier": "mean", "start__optimizer": True, "num_steps": 4}
    said, arrays = trained(tmp_path / "two", start__workdir=str(tmp_path / "four"), **two)
    assert "starting from step 4" in said
    assert "standardisation of the interface at unit 1 of the other run is not in this one" in said
    assert "multiplier of the interface at unit 3 of the other run is not in this one" in said
    assert "AuxNet params beside units 0000-0002 starts fresh" in said
    assert arrays["step"] == 4
    same = [name for name in arrays if name.startswith(("network.", "interface.2", "key"))]
    assert len(same) > 50
    assert_same({name: arrays[name] for name in same}, {name: four[name] for name in same})
    back = {"multiplier": "mean", "start__optimizer": True, "num_steps": 4}
    said, arrays = trained(tmp_path / "back", start__workdir=str(tmp_path / "two"), **back)
    assert "multiplier of the interface at unit 1 starts fresh" in said
    assert not arrays["interface.1.multiplier"].any()
    assert_same({name: arrays[name] for name in same}, {name: four[name] for name in same})


@pytest.mark.slow
def test_another_method_and_back(tmp_path):
    """Layer-parallel, serial fine-tuning, layer-parallel: schedules and data go on where they were."""
    _, first = trained(tmp_path / "a", num_steps=4)
    there = {"method": "serial", "standardise": True}
    there |= {"start__workdir": str(tmp_path / "a"), "start__optimizer": True}
    said, arrays = trained(tmp_path / "b", **there, num_steps=8)
    assert "AuxNet params beside units 0000-0001 of the other run is not in this one" in said
    assert not np.array_equal(arrays["network.params.0.conv.kernel"], first["network.params.0.conv.kernel"])
    assert arrays["network.optimizer.2.1.count"] == 8
    assert [line["step"] for line in metrics_of(tmp_path / "b") if line["kind"] == "train"] == [6, 8]
    back = {"start__workdir": str(tmp_path / "b"), "start__optimizer": True}
    said, last = trained(tmp_path / "c", **back, num_steps=12)
    assert "AuxNet params beside units 0000-0001 starts fresh" in said
    assert last["network.optimizer.2.1.count"] == last["aux.optimizer.2.1.count"] == last["step"] == 12
    saved, _ = checkpoint.newest_good(tmp_path / "c" / "checkpoints")
    assert saved.meta["feed"] == [{"step": 12}]


def test_another_method_keeps_the_network_or_asks(tmp_path):
    """Where standardise is unset, a method that would drop the other run's standardisation does not do so unasked."""
    trained(tmp_path / "a", **TWO, num_steps=1)
    there = {"method": "coarse_adjoint", **TWO, "start__workdir": str(tmp_path / "a"), "num_steps": 1}
    with pytest.raises(WorkdirError, match=r"standardise=True, those of this run False.*=True to go on"):
        trained(tmp_path / "b", **there)
    said, _ = trained(tmp_path / "b", **there, standardise=True)
    assert "standardisation" not in said
    said, _ = trained(tmp_path / "c", **there, standardise=False)
    assert "standardisation of the interface at unit 2 of the other run is not in this one" in said


@pytest.mark.slow
def test_weights_alone(tmp_path):
    """A new run of another recipe starts at step 0 with what the network has learnt."""
    _, first = trained(tmp_path / "a", num_steps=4)
    recipe = {"start__workdir": str(tmp_path / "a"), "optimizer": {"name": "adamw", "learning_rate": 1e-9}, "seed": 7}
    said, arrays = trained(tmp_path / "b", **recipe, batch_size=64, num_steps=1)
    assert "fresh" not in said
    assert arrays["step"] == 1
    for name in ("network.params.0.conv.kernel", "network.params.4.kernel"):
        np.testing.assert_allclose(arrays[name], first[name], atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_the_checkpoint_to_start_from(tmp_path):
    trained(tmp_path / "a", num_steps=4, checkpoint__every_steps=2)
    _, arrays = trained(
        tmp_path / "b", num_steps=3, start__workdir=str(tmp_path / "a"), start__step=2, start__optimizer=True
    )
    assert arrays["step"] == 3
    with pytest.raises(
        WorkdirError, match=r"the checkpoint of step 3 cannot be read .*; there are those of steps: 2, 4"
    ):
        trained(tmp_path / "c", start__workdir=str(tmp_path / "a"), start__step=3)
    with pytest.raises(WorkdirError, match="nothing: expected a run's workdir, there is no checkpoint in"):
        trained(tmp_path / "c", start__workdir=str(tmp_path / "nothing"))
    with pytest.raises(WorkdirError, match=r"another network: \d+ arrays of parameters .* such as network.params"):
        trained(tmp_path / "c", start__workdir=str(tmp_path / "a"), model={"depth": 14, "width": 4})


def test_what_contradicts_a_checkpoint_is_listed(tmp_path):
    trained(tmp_path, num_steps=1)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.name != "lock"}
    with pytest.raises(WorkdirError) as error:
        trained(tmp_path, num_steps=2, num_stages=2, method="serial", optimizer__learning_rate=0.2)
    for difference in (
        "method: 'layer_parallel' in the checkpoint, 'serial' now",
        "num_stages: 4 in the checkpoint, 2 now",
        "optimizer.learning_rate: 0.1 in the checkpoint, 0.2 now",
        "cuts: [1, 2, 3] in the checkpoint, [",
        "--restart",
    ):
        assert difference in str(error.value)
    assert "num_steps" not in str(error.value), "may change"
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.name != "lock"} == before


def test_a_run_may_not_end_before_its_checkpoint(tmp_path):
    trained(tmp_path, method="serial", num_steps=3)
    with pytest.raises(WorkdirError, match=r"num_steps=2: the checkpoint in .* is of step 3"):
        trained(tmp_path, method="serial", num_steps=2)


def test_evaluating_a_checkpoint(tmp_path):
    run = small_run(num_steps=3)
    result = loop.train(run, tmp_path, Console(file=io.StringIO()))
    again = loop.evaluate(small_run(mesh__stage=1), tmp_path)
    assert again["step"] == 3
    assert again["test_accuracy"] == pytest.approx(result["test_accuracy"], abs=0.01)
    assert again == json.loads((tmp_path / "eval.json").read_text())
    said = []
    with unittest.mock.patch.object(workdir, "write_json", side_effect=PermissionError("read-only")):
        assert loop.evaluate(small_run(mesh__stage=1), tmp_path, said.append) == again
    assert said == [f"{tmp_path}/eval.json is not written: read-only"]


def test_names_do_not_depend_on_the_cut():
    whole = [canonical.named(small_tree(num_stages=stages)) for stages in (1, 2, 4)]
    network = [{name: value.shape for name, value in arrays.items() if name.startswith("network")} for arrays in whole]
    assert network[0] == network[1] == network[2]
    for name in network[0]:
        if ".params." in name:
            np.testing.assert_array_equal(whole[0][name], whole[2][name], err_msg=name)


def small_tree(**fields):
    run = small_run(mesh__stage=1, **fields)
    return resume._tree(run, run.create())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "model": {"function": "configs.digits_mlp:residual_mlp", "blocks": 3, "width": 8},
            "aux__function": "own_units",
        },
        {"phases__methods": ("layer_parallel", "serial"), "phases__epochs": (1.0,)},
    ],
    ids=["resnet", "one's own, whose arguments are others", "phases"],
)
def test_a_run_understands_its_own_identity(fields):
    found = identity.identity(small_run(data__crop=0, dry_run=True, **fields))
    assert identity.understood(found) == found


PHASES = {
    **TWO,
    "phases__methods": ("layer_parallel", "serial", "local"),
    "phases__epochs": (0.4, 0.8),  # after steps 4 and 9 of 11
    "num_epochs": 1,
}


def test_phases_are_one_run(tmp_path):
    """The state carries over from method to method; parts that end between two or inside one are the whole."""
    said, whole = trained(tmp_path / "whole", **PHASES)
    assert "from layer_parallel to serial after step 4" in said
    assert "from serial to local after step 9" in said
    assert "carry local-2 starts fresh" in said
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert (result["ended"], result["steps"]) == ("finished", 11)
    assert result["method"] == "layer_parallel, serial, local"
    assert whole["network.optimizer.2.1.count"] == 11
    assert whole["carry.local-2.opt.2.1.count"].tolist() == [11] * 2, "the classifiers' schedule is the run's"
    for step in (4, 6):
        trained(tmp_path / "half", **PHASES, num_steps=step)
    _, arrays = trained(tmp_path / "half", **PHASES)
    assert_same(arrays, whole)
    assert metrics_of(tmp_path / "half") == metrics_of(tmp_path / "whole")
    with pytest.raises(WorkdirError, match=r"phases\.epochs"):
        trained(tmp_path / "half", **PHASES | {"phases__epochs": (0.4, 0.9)})


BY_COSINE = {
    **TWO,
    "phases": {
        "methods": ("coarse_adjoint", "delayed"),
        "by": "cosine",
        "threshold": 0.99999,
        "patience": 2,
        "least_epochs": 0.3,
        "every": 2,
    },
    "num_steps": 13,
}


@pytest.mark.slow
def test_phases_by_an_indicator_are_one_run_and_return_to_a_method(tmp_path):
    """Neither method is exact: each is left after two measurements, of which the first needs batches of steps before.

    Halves end where what was measured, or the batches for the next measurement, must come from the checkpoint, and
    where a method is left.
    """
    said, whole = trained(tmp_path / "whole", **BY_COSINE)
    lines = metrics_of(tmp_path / "whole")
    changes = [(line["step"], line["method"], line["after"]) for line in lines if line["kind"] == "phase"]
    assert changes == [(4, "delayed", "coarse_adjoint"), (10, "coarse_adjoint", "delayed")]
    measured = {line["step"]: np.mean(line["gradient_cosine"]) for line in lines if "gradient_cosine" in line}
    assert list(measured) == [2, 4, 8, 10, 12], "delayed gradients of step 6 are of a batch of the phase before"
    assert [line["cosine"] for line in lines if line["kind"] == "phase"] == pytest.approx([measured[4], measured[10]])
    assert (
        f"from coarse_adjoint to delayed after step 4: cosine {measured[4]:.3g}, below 0.99999, 2 times in a row"
        in said
    )
    assert "AuxNet params" not in said, "it is kept while delayed gradients do without"
    for step in (3, 7, 9, 10):
        _, arrays = trained(tmp_path / "parts", **BY_COSINE | {"num_steps": step})
    waiting = {name.removeprefix("kept."): own for name, own in arrays.items() if name.startswith("kept.aux.params.")}
    assert waiting
    other = small_run(**TWO, method="coarse_adjoint", start__workdir=str(tmp_path / "parts"))
    started = resume.snapshot(other, resume.from_other(other, lambda line: None).state)
    assert_same({name: started[name] for name in waiting}, waiting)
    _, arrays = trained(tmp_path / "parts", **BY_COSINE)
    assert_same(arrays, whole)
    assert metrics_of(tmp_path / "parts") == lines
    with pytest.raises(WorkdirError, match=r"phases\.threshold"):
        trained(tmp_path / "parts", **BY_COSINE | {"phases": BY_COSINE["phases"] | {"threshold": 0.5}})


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_settings_of_classifiers_decide_a_run_of_backprop_that_has_some(weight):
    made = identity.identity(small_run(method="serial", serial__deep_supervision=weight))
    assert {name.partition(".")[0] for name in made} & set(METHODS) == {"serial", *(["local"] if weight else [])}
    assert identity.understood(made) == made


def test_another_random_generator_is_refused(tmp_path):
    """Its numbers would be others, and its keys may be of another shape."""
    run = small_run(method="serial", num_steps=1)
    loop.train(run, tmp_path, Console(quiet=True))
    saved = identity.identity(run)
    assert saved["JAX_DEFAULT_PRNG_IMPL"] == "threefry2x32"
    del saved["JAX_DEFAULT_PRNG_IMPL"], saved["JAX_THREEFRY_PARTITIONABLE"]
    identity.check_same(saved, run, tmp_path)  # of an older version
    with jax.default_prng_impl("rbg"), pytest.raises(WorkdirError, match=r"PRNG_IMPL: 'threefry2x32' in .* 'rbg' now"):
        loop.train(small_run(method="serial", num_steps=2), tmp_path, Console(quiet=True))
