"""What the experiments on speed make of measured seconds, and small ones from end to end."""

import contextlib
import json
from types import SimpleNamespace

import jax
import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.harness.command import chosen
from experiments.speed import speedup
from experiments.speed.parts import Parts
from experiments.speed.prediction import computing, eq27, prediction, schedule_of
from lpjax.errors import BadInput
from lpjax.nn.count import chain_flops, chain_layers, chain_size, unit_flops
from lpjax.nn.losses import features
from lpjax.nn.schedule import Drawn, Message, Plan
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


def test_a_step_without_exchange_or_serial_auxnet():
    """A stage's tails are in its program; the AuxNet is updated on every device."""
    parts = {name: PARTS[name] for name in ("stages", "data", "optimizer", "serial", "serial_data")}
    made = prediction(step(method="coarse_adjoint"), parts | {"aux_optimizer": 3.0}, None)
    assert made["seconds"] == pytest.approx(40 + 0.5 + 1 + 3)
    assert made["terms"]["update"] == pytest.approx(4)
    assert made["rho_eq27"] is made["bound_eq27"] is None


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
def test_a_tiny_speedup(tmp_path):
    fields = ["--config.model.depth=8", "--config.model.width=4", "--config.batch_size=16"]
    argv = ["speedup", "--config=configs/digits.py", "--rows=coarse_tail;coarse_adjoint"]
    argv += ["--stages=2", "--even", *fields]
    out = tmp_path / "speedup.json"
    repeats = ["--processes=1", "--rounds=1", "--steps=1", "--repeats=1"]
    assert chosen([*argv, *repeats, f"--out={out}"], EXPERIMENTS) == 0
    made = json.loads(out.read_text())
    measured = [row["row"] for row in made["measured"]]
    assert measured in ([], ["serial", "coarse_tail", "coarse_adjoint"]), "with two cores"
    assert [row["row"] for row in made["predictions"]] == ["coarse_tail", "coarse_adjoint"]
    assert made["predictions"][1]["fields"]["aux.grid"] == 4
    assert 0 < made["predictions"][0]["rho"] < 2
