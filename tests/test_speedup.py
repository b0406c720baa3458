"""What the experiments on speed make of measured seconds, and small ones from end to end."""

import contextlib
import json
from types import SimpleNamespace

import jax
import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.docs import pictures
from experiments.harness.command import chosen
from experiments.harness.experiment import result
from experiments.harness.worker import Process
from experiments.speed import memory, speedup
from experiments.speed.parts import Parts
from experiments.speed.prediction import computing, eq27, prediction, schedule_of
from lpjax.errors import BadInput
from lpjax.methods.local import classifiers
from lpjax.nn.count import chain_flops, chain_layers, chain_size, unit_flops
from lpjax.nn.losses import features
from lpjax.nn.schedule import Drawn, Message, Plan, to_json
from lpjax.training import run as runs
from tests.helpers import small_config

PARTS = {
    "stages": [40.0, 20.0],
    "data": 0.5,
    "aux_all": 3.0,
    "correction": 1.0,
    "send": 0.375,
    "receive": 0.125,
    "optimizer": 1.0,
    "serial_aux_all": 6.0,
    "aux_forward": 1.5,
    "serial": 93.0,
    "serial_data": 1.0,
}
LINK = {"latency": 0.5, "bandwidth": 10.0}


def network_and_config(**fields):
    """Two stages on two devices, 16 examples a step."""
    run = runs.prepare(small_config(num_stages=2, dry_run=True, **fields))
    return run.network, run.config


def step(**fields):
    return schedule_of(*network_and_config(**fields))


def sent_by_hand(network):
    """By kind number and bytes of what each of two devices sends in a layer-parallel step on 16 examples.

    A device has 8 of them: it sends their tags, half of each packet, and of what is summed over two devices as many
    bytes as that has.  Batch norms of the AuxNet have two moments a channel, in both passes.
    """
    interface = features(network.interfaces[1])
    image = features(network.chain.in_shape)
    norms = [c for piece in network.aux_net for count, own in chain_layers(piece) for c in own.norms * count]
    return {
        "exchange": (3, 8 * 3 * 4 + 8 * 4 * (image + interface) + 8 * 4 * interface),
        "gradients": (1, 4 * sum(map(chain_size, network.aux_net))),
        "metrics": (2, 4 * 2 + 5 * 4 * 2),
        "batch norm": (2 * len(norms), 2 * 2 * 4 * sum(norms)),
    }


def test_a_step_is_its_parts_and_what_it_sends():
    network, config = network_and_config()
    schedule = schedule_of(network, config)
    sent = {label: 0.5 * number + size / 10 for label, (number, size) in sent_by_hand(network).items()}
    made = prediction(schedule, PARTS, LINK)
    # 40 stage, 0.5 data, 2 AuxNet, 1 correction, 0.5 packing, 1 optimiser
    assert made["seconds"] == pytest.approx(45.0 + sum(sent.values()))
    assert sum(made["terms"].values()) == pytest.approx(made["seconds"])
    assert {label: made["terms"][label] for label in sent} == pytest.approx(sent)
    assert made["rho"] == pytest.approx(93 / made["seconds"])
    assert made["not_stage"] == pytest.approx(1 - 40 / made["seconds"])
    assert made["imbalance"] == pytest.approx(1 / 3)


def test_one_device_exchanges_nothing():
    made = prediction(step(), PARTS, None)
    assert made["seconds"] == pytest.approx(45.0)
    assert {"exchange", "gradients", "metrics", "batch norm"}.isdisjoint(made["terms"])
    assert {label: made["terms"][label] for label in ("augment", "pack", "correct", "update")} == pytest.approx(
        {"augment": 0.5, "pack": 0.5, "correct": 1.0, "update": 1.0}
    )
    assert made["terms"]["aux forward"] == pytest.approx(1.5)
    assert made["terms"]["aux backward"] == pytest.approx(0.5)


def test_what_sweeps_and_a_stale_exchange_add():
    """A sweep: the stages' forward passes, packets there and back, two forward passes of the pieces but the last.

    A stage has three passes' operations, the first one none for the gradient of the image, and its tail three.
    """
    network, config = network_and_config(penalty__sweeps=2)
    (first, last), (own, _), (_, tail) = (
        map(chain_flops, chains) for chains in (network.aux_net, network.stages, network.aux_tails)
    )
    spared = unit_flops(network.chain.units[0], network.chain.in_shape)
    forward = [40 * own / (3 * own - spared + 3 * tail), 20 / 3]
    swept = prediction(schedule_of(network, config), PARTS, None)
    assert swept["seconds"] == pytest.approx(45 + 2 * (max(forward) + 0.5 + 2 * 1.5 * first / (first + last)))
    assert prediction(step(exchange__stale=True), PARTS, None)["seconds"] == pytest.approx(45 + 0.5 + 1.5)


def test_more_steps_of_the_fit_are_in_its_program():
    """They make it longer where it is timed, and are not counted again."""
    made = prediction(step(aux__inner_steps=2), PARTS, None)
    assert (made["seconds"], made["terms"]["update"]) == (pytest.approx(45.0), pytest.approx(1.0))


def test_programs_are_split_by_operations():
    """Of a made-up step of two stages on two devices, the second stage with a classifier."""
    plan = Plan()
    for d in range(2):
        plan.work(d, "aux", stage=0, chain="chain")
        plan.work(d, "aux", stage=1, chain="chain")
    plan.message("all_to_all", "stage", 8, "exchange")
    for d in range(2):
        plan.work(d, "aux", stage=0, chain="chain")  # again, but not all of it
    plan.work(0, "stage", stage=0, chain="chain")  # a forward pass alone
    kept = plan.work(0, "stage", stage=0, chain="chain")
    plan.keep(kept, plan.work(0, "stage", stage=0, chain="chain", gradients=("weights",)))
    plan.work(1, "classifier", stage=1, chain="chain")
    for d in range(2):
        plan.work(d, "update", accesses=30)
        plan.work(d, "correct", accesses=1)
        plan.work(d, "aux", stage=1, chain="chain", gradients=("input", "weights"))
        plan.work(d, "aux", stage=0, chain="chain", gradients=("weights",))
        plan.work(d, "update", accesses=30)
    flops = [1, 2, 1, 2, 0, 1, 1, 5, 5, 15, 7, 0, 0, 6, 2, 0, 0, 0, 6, 2, 0]
    rows = [Drawn(item, float(own), item.label) for item, own in zip(plan.items, flops, strict=True)]
    assert isinstance(rows[4].item, Message)
    fit = [1.0, 0.375, 0.125, 0.0]  # the correction, 0.5 for 6 + 2 operations, and no update
    assert computing(rows, PARTS, updated=20) == pytest.approx(
        [0.5, 1.0, 0.5, 1.0, 0.0, 0.5, 0.5, 10.0, 10.0, 30.0, 20.0, 1.5, *fit, 1.5, *fit]
    )


def test_equation_27_and_its_bound():
    network, config = network_and_config()
    made = prediction(schedule_of(network, config), PARTS, LINK)
    number, size = sent_by_hand(network)["exchange"]
    waited = 1.0 + (0.5 + 0.5 * number + size / 10 + 1.0) + 6.0  # T_d, t_psi, t_f + t_b
    assert made["rho_eq27"] == pytest.approx(93 / (waited + 92 / 2))
    assert made["bound_eq27"] == pytest.approx(93 / waited)
    many = eq27(PARTS, made["terms"], 10**9)
    assert many[0] == pytest.approx(many[1])


def test_ratios_are_paired_by_round():
    def answer(*seconds):
        return {"seconds": list(seconds), "host_seconds": [0.1] * len(seconds), "compiled": 0}

    serial, own = [answer(2.0, 2.0), answer(8.0, 8.0)], [answer(1.0, 1.0), answer(4.0, 4.0)]
    row = speedup.measured_row(own, serial)
    assert row["rho"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert row["seconds"] == {"median": 2.5, "min": 1.0, "max": 4.0}
    assert row["compiled"] == 0


def test_a_step_without_exchange_or_serial_auxnet():
    """A stage's tails are in its program; the AuxNet is updated on every device."""
    parts = {name: PARTS[name] for name in ("stages", "data", "optimizer", "serial", "serial_data")}
    made = prediction(step(method="coarse_adjoint"), parts | {"aux_optimizer": 3.0}, None)
    assert made["seconds"] == pytest.approx(40 + 0.5 + 1 + 3)
    assert made["terms"]["update"] == pytest.approx(4)
    assert made["rho_eq27"] is made["bound_eq27"] is None


def test_an_update_takes_longer_the_more_it_updates():
    """A device's stage, and a classifier of the longest one's size; only the stage's update is timed."""
    network, config = network_and_config(method="local")
    own = classifiers(network, config.local.blocks).params.lengths.values()
    parts = {name: PARTS[name] for name in ("stages", "data", "optimizer", "serial", "serial_data")}
    made = prediction(schedule_of(network, config), parts, None)
    assert made["terms"]["update"] == pytest.approx(1 + sum(own) / sum(network.params.lengths.values()))
    assert made["seconds"] == pytest.approx(40 + 0.5 + made["terms"]["update"])


def test_rows_are_paired_with_serial_of_their_own_processes():
    """In the second processes all takes ten times as long, and `local` cannot be compiled."""
    number = [0]
    taken = {"serial": 8.0, "fdg": 4.0, "local": 2.0}

    def answers(seconds):
        return [{"seconds": [seconds * 10 ** (number[0] - 1)], "host_seconds": [0.0], "compiled": 0}]

    @contextlib.contextmanager
    def workers():
        number[0] += 1
        yield number[0]

    def prepared(workers, row, K):
        if (workers, row) == (2, "local"):
            raise RuntimeError("no room")
        return workers, {"row": row, "stages": K}

    def timed(ready):
        return {name: answers(taken[name]) for name in ready}

    made_up = SimpleNamespace(processes=2, workers=workers, prepared=prepared, timed=timed)
    earlier = {"row": "fdg", "stages": 2}
    made = {"measured": [earlier], "failed": []}
    *_, made = speedup.measured(made_up, ["serial", "fdg", "local"], 4, made)
    first, *rows = made["measured"]
    assert first is earlier
    assert [(m["row"], m["stages"], m["rho"]["median"], m["seconds"]["max"]) for m in rows] == [
        ("serial", 4, 1.0, 80.0),
        ("fdg", 4, 2.0, 40.0),
        ("local", 4, 4.0, 2.0),
    ]
    assert made["failed"] == [{"what": "compiling local, K = 4, processes 2", "error": "no room"}]


def test_networks_that_the_references_do_not_have_are_refused():
    with pytest.raises(BadInput, match=r"model.function=wide_resnet: expected resnet"):
        chosen(["references", "--config=configs/cifar10_wrn16_4.py"], EXPERIMENTS)


def test_an_unknown_row_is_refused_before_anything_is_timed():
    with pytest.raises(BadInput, match="row 'layerparallel': expected one of"):
        chosen(["speedup", "--rows=layerparallel"], EXPERIMENTS)


def test_bytes_of_an_exchange_are_those_of_its_arrays():
    """Two devices: one sends its stage's packets and tags to the other, and its half of the images and their tags."""
    run = runs.prepare(small_config(method="coarse_adjoint", num_stages=2, mesh__stage=1, dry_run=True))
    parts = Parts(run, jax.devices()[0], 2)
    images = parts.augment(parts.column // 2)[0]()
    carry, schedule = parts.state.carry, parts.schedule()
    pairs = zip(schedule["entries"], schedule["sent"], strict=True)
    sent = sum(size for entry, (_, size) in pairs if entry["kind"] == "exchange")
    assert sent == carry.inputs.nbytes / 2 + images.nbytes + carry.tags.nbytes / 2 + 8 * 3 * 4


@pytest.mark.slow
def test_a_worker_times_a_step_and_its_parts():
    fields = {"num_stages": 2, "model.depth": 8, "model.width": 4, "batch_size": 16, "multiplier": "coarse_tail"}
    process = Process(2, {}, speedup.WORKER)
    try:
        assert process.ask("hello")["devices"] >= 2
        cuts = process.ask("cuts", config="configs/digits.py", fields={**fields, "mesh.stage": 1}, repeats=1)
        fields["cuts"] = cuts["cuts"]
        ready = process.ask("prepare", name="own", config="configs/digits.py", fields=fields)
        assert ready["cuts"] == cuts["cuts"]
        step = process.ask("step", name="own", steps=2)
        assert len(step["seconds"]) == 2
        assert step["compiled"] == 0
        single = {**fields, "mesh.stage": 1}
        link = process.ask("link", count=2, repeats=1)
        for more in ({}, {"penalty.sweeps": 1}, {"method": "coarse_adjoint"}, {"method": "local"}):
            parts = process.ask("parts", config="configs/digits.py", fields=single | more, devices=2)
            parts |= process.ask("parts_seconds", repeats=1) | {"serial": 1.0}
            parts["stages"] = [parts.pop(f"stage {k}") for k in range(2)]
            made = prediction(parts.pop("schedule"), parts, link)
            assert 0 < made["seconds"] < 60
            assert made["seconds"] > max(parts["stages"])
        with pytest.raises(RuntimeError, match="method='nosuch'"):
            process.ask("prepare", name="bad", config="configs/digits.py", fields={"method": "nosuch"})
    finally:
        process.close()


def test_a_process_that_ended_is_told():
    process = Process(1, {}, "experiments_nowhere")
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"hello {}: the process ended with code 1"):
                process.ask("hello")
    finally:
        process.close()


@pytest.mark.slow
def test_the_reference_has_our_parameters():
    process = Process(1, {}, "experiments.speed.reference_flax")
    try:
        model = {"depth": 20, "width": 16, "classes": 10}
        assert process.ask("prepare", name="", model=model, batch=2, image=[8, 8, 3])["parameters"] == 269_722
        assert len(process.ask("step", name="", steps=1)["seconds"]) == 1
    finally:
        process.close()


def test_the_table():
    prediction = {"row": "coarse_tail", "stages": 2, "rho": 93 / 49, "rho_eq27": 1.586, "bound_eq27": 7.44}
    prediction |= {"not_stage": 9 / 49, "imbalance": 1 / 3}
    spread = {"median": 1.5, "min": 1.25, "max": 1.75}
    row = {"row": "coarse_tail", "stages": 2, "seconds": spread, "rho": spread}
    for alone, predicted in [([1.9], "1.90"), ([2.25, 1.875], "1.90 (1.88 .. 2.25)")]:
        prediction["by_process"] = [{"rho": rho} for rho in alone]
        text = speedup.in_full(json.loads(json.dumps({"measured": [row], "predictions": [prediction]})))
        assert text.splitlines()[-1] == (
            f"| 2 | coarse_tail | 1.500 | 1.50 (1.25 .. 1.75) | {predicted} |  | 1.59 < 7.44 | 18.4% | 33% |"
        )


@pytest.mark.slow
def test_a_tiny_speedup(tmp_path):
    fields = ["--config.model.depth=8", "--config.model.width=4", "--config.batch_size=16"]
    argv = ["speedup", "--config=configs/digits.py", "--rows=coarse_tail", "--stages=2", "--even", *fields]
    out = tmp_path / "speedup.json"
    repeats = ["--processes=1", "--rounds=1", "--steps=1", "--repeats=1"]
    assert chosen([*argv, *repeats, f"--out={out}"], EXPERIMENTS) == 0
    made = json.loads(out.read_text())
    measured = [row["row"] for row in made["measured"]]
    assert measured in ([], ["serial", "coarse_tail"]), "with two cores"
    assert [row["row"] for row in made["predictions"]] == ["coarse_tail"]
    assert 0 < made["predictions"][0]["rho"] < 2


# memory ---------------------------------------------------------------------------------------------------------------


def test_the_table_of_memory():
    def row(name, stages, held, temporary):
        return {"row": name, "stages": stages, "held_bytes": held * 1e6, "temporary_bytes": temporary * 1e6}

    rows = [row("serial", 1, 2, 18), row("local", 2, 1.25, 9), row("local", 4, 1, 4)]
    assert memory.over_serial({"rows": rows}).splitlines()[2:] == [
        "| serial | 2.0 + 18 (1.00) | 2.0 + 18 (1.00) |",
        "| local | 1.2 + 9 (0.51) | 1.0 + 4 (0.25) |",
        "| 1/K | 0.50 | 0.25 |",
    ]


@pytest.mark.slow
def test_stages_hold_less_than_the_whole(tmp_path):
    out = tmp_path / "memory.json"
    fields = ["--config.model.depth=20", "--config.model.width=8", "--config.batch_size=32"]
    argv = ["memory", "--config=configs/digits.py", "--stages=2,4", "--rows=local", f"--out={out}", *fields]
    assert chosen(argv, EXPERIMENTS) == 0
    rows = {(r["row"], r["stages"]): r for r in json.loads(out.read_text())["rows"]}
    assert list(rows) == [("serial", 1), ("local", 2), ("local", 4)]
    needed = [r["temporary_bytes"] for r in rows.values()]
    assert needed[0] > needed[1] > needed[2] > 0


# the drawn schedule ---------------------------------------------------------------------------------------------------


def test_the_drawn_steps_are_as_long_as_their_parts():
    """Backprop is what was timed; the layer-parallel step is the prediction, and what it sends beside packets."""
    made = result("speedup")
    (row,) = [p for p in made["predictions"] if (p["row"], p["stages"]) == ("coarse_tail", pictures.STAGES)]
    drawn = pictures.steps(made).values()
    serial, pipeline, own = (max(block[1] for device in step for block in device) for step in drawn)
    assert serial == pytest.approx(row["parts"]["serial"], rel=1e-9)
    assert row["seconds"] < own < 1.1 * row["seconds"]
    assert pipeline > serial * (4 + 4 - 1) / (4 * 4), "the bubble, by four stages and micro-batches, cut by no time"


def test_what_a_device_does_without_a_break_is_drawn_as_one():
    """Two pieces of the AuxNet are one block, on each device; a message is on all; what has a name stays apart."""
    plan = Plan()
    for d in range(2):
        plan.work(d, "aux", stage=0)
        plan.work(d, "aux", stage=1)
    plan.message("all_to_all", "stage", 8, "exchange")
    for k in range(2):
        plan.work(0, "stage", stage=k)
        plan.work(1, "tail", stage=k)
    schedule = {"entries": to_json(plan.items, [0.0] * 9), "sent": [[0, 0]] * 4 + [[1, 20]] + [[0, 0]] * 4}
    step = pictures.placed(schedule, [1.0] * 4 + [0.0] + [2.0] * 4, {"latency": 1.0, "bandwidth": 10.0})
    first = [(0, 2, "AuxNet", ""), (2, 5, "exchange", "")]
    assert step == [
        [*first, (5, 7, "forward pass", "F0"), (7, 9, "forward pass", "F1")],
        [*first, (5, 9, "coarse tail", "")],
    ]
