"""What `experiments.speedup` makes of measured seconds."""

import contextlib
import json
from types import SimpleNamespace

import jax
import pytest

from experiments import speedup
from experiments.compare import load
from experiments.speedup import Process
from experiments.step_parts import Parts
from lpjax.training import run as runs
from tests.helpers import small_config

PARTS = {
    "stages": [40.0, 20.0],
    "data": 0.5,
    "aux_all": 3.0,
    "correction": 1.0,
    "send": 0.25,
    "receive": 0.25,
    "optimizer": 1.0,
    "serial_aux_all": 6.0,
    "aux_forward": 1.5,
    "stages_forward": [12.0, 7.0],
    "sweeps": 0,
    "stale": False,
    "serial": 93.0,
    "serial_data": 1.0,
}
LINK = {"latency": 0.5, "bandwidth": 10.0}


def test_the_sharded_formula():
    made = speedup.prediction(PARTS, LINK, 30.0, 2)
    # 40 stage, 0.5 data, 2 AuxNet, 1 correction, 0.5 packing, 2 * 0.5 + 3 exchange, 1 optimiser
    assert made["seconds"] == pytest.approx(49.0)
    assert sum(made["terms"].values()) == pytest.approx(49.0)
    assert made["rho"] == pytest.approx(93 / 49)
    assert made["not_stage"] == pytest.approx(9 / 49)
    assert made["imbalance"] == pytest.approx(1 / 3)


def test_what_sweeps_and_a_stale_exchange_add():
    total = sum(speedup.sharded_terms(PARTS, LINK, 30.0).values())
    swept = speedup.sharded_terms(PARTS | {"sweeps": 2}, LINK, 30.0)
    assert swept["sweeps"] == 2 * (12.0 + 0.5 + 4.0 + 2 * 1.5)
    assert sum(swept.values()) == pytest.approx(total + swept["sweeps"])
    assert sum(speedup.sharded_terms(PARTS | {"stale": True}, LINK, 30.0).values()) == pytest.approx(total + 2.0)


def test_one_device_exchanges_nothing():
    assert speedup.sharded_terms(PARTS, None, 30.0)["exchange"] == 0


def test_equation_27_and_its_bound():
    made = speedup.prediction(PARTS, LINK, 30.0, 2)
    waited = 1.0 + (0.5 + 4.0 + 1.0) + 6.0  # T_d, t_psi, t_f + t_b
    assert made["rho_eq27"] == pytest.approx(93 / (waited + 92 / 2))
    assert made["bound_eq27"] == pytest.approx(93 / waited)
    many = speedup.eq27(PARTS, LINK, 30.0, 10**9)
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
    names = ("stages", "data", "aux_all", "optimizer", "stages_forward", "sweeps", "stale", "serial", "serial_data")
    made = speedup.prediction({name: PARTS[name] for name in names}, LINK, 30.0, 2)
    assert made["seconds"] == pytest.approx(40 + 0.5 + 3 + 1 + 2 * 0.5 + 3)
    assert made["rho_eq27"] is made["bound_eq27"] is None


def test_rows_are_paired_with_serial_of_their_own_processes():
    """In the second processes all takes ten times as long, and `local` cannot be compiled."""
    number = [0]

    def answers(seconds):
        return [{"seconds": [seconds * 10 ** (number[0] - 1)], "host_seconds": [0.0], "compiled": 0}]

    @contextlib.contextmanager
    def workers():
        number[0] += 1
        yield number[0]

    def prepared(workers, row, K):
        if (workers, row) == (2, "local"):
            raise RuntimeError
        return {row: (workers, {"row": row, "stages": K})}

    def timed(ready):
        taken = {"serial": 8.0, "fdg": 4.0, "local": 2.0}
        return [(row, answers(taken[name]), answers(8.0)) for name, (_, row) in ready.items()]

    def attempt(_, keep, work):
        with contextlib.suppress(RuntimeError):
            keep(work())

    bench = SimpleNamespace(processes=2, workers=workers, prepared=prepared, timed=timed)
    earlier = {"row": "fdg", "stages": 2}
    result = {"measured": [earlier]}
    speedup.measure_rows(bench, ["serial", "fdg", "local"], 4, result, attempt)
    first, *rows = result["measured"]
    assert first is earlier
    assert [(m["row"], m["stages"], m["rho"]["median"], m["seconds"]["max"]) for m in rows] == [
        ("serial", 4, 1.0, 80.0),
        ("fdg", 4, 2.0, 40.0),
        ("local", 4, 4.0, 2.0),
    ]


def test_a_part_counts_with_its_median_over_processes():
    timed = [
        {"stages": [1.0, 9.0], "serial": 5.0, "sweeps": 1},
        {"stages": [2.0, 3.0], "serial": 4.0, "sweeps": 1},
        {"stages": [7.0, 4.0], "serial": 6.0, "sweeps": 1},
    ]
    assert speedup.medians(timed) == {"stages": [2.0, 4.0], "serial": 5.0, "sweeps": 1}


def test_networks_for_the_references():
    config = load(speedup.Path("configs/cifar10_wrn16_4.py"), {"dry_run": True, "model.dropout": 0.0})
    model, batch, image = speedup.described(config)
    assert model == {"depth": 16, "width": 64, "wide": True, "classes": 10}
    assert (batch, image) == (128, [32, 32, 3])
    with pytest.raises(RuntimeError, match="without dropout"):
        speedup.described(load(speedup.Path("configs/cifar10_wrn16_4.py"), {"dry_run": True}))


def test_an_unknown_method_is_refused(capsys):
    with pytest.raises(SystemExit):
        speedup.main(["speedup", "--methods=layerparallel"])
    assert "expected of serial" in capsys.readouterr().err


def test_bytes_of_an_exchange_are_those_of_its_arrays():
    """Two devices: one sends its stage's packets to the other, and its half of the images."""
    run = runs.prepare(small_config(method="coarse_adjoint", num_stages=2, mesh__stage=1, dry_run=True))
    parts = Parts(run, jax.devices()[0], 2)
    images = parts.augment(parts.column // 2)[0].run()
    assert parts.sent_bytes() == parts.state.carry.inputs.nbytes / 2 + images.nbytes


@pytest.mark.slow
def test_a_worker_times_a_step_and_its_parts():
    fields = {"num_stages": 2, "model.depth": 8, "model.width": 4, "batch_size": 16, "multiplier": "coarse_tail"}
    process = Process(2, {})
    try:
        assert process.ask("hello")["devices"] >= 2
        cuts = process.ask("cuts", config="configs/digits.py", fields={**fields, "mesh.stage": 1}, repeats=1)
        assert len(cuts["units"]) == 5
        fields["cuts"] = cuts["cuts"]
        ready = process.ask("prepare", name="own", config="configs/digits.py", fields=fields)
        assert ready["cuts"] == cuts["cuts"]
        step = process.ask("step", name="own", steps=2)
        assert len(step["seconds"]) == 2
        assert step["compiled"] == 0
        single = {**fields, "mesh.stage": 1}
        parts = process.ask("parts", config="configs/digits.py", fields=single, devices=2)
        parts |= process.ask("parts_seconds", repeats=1)
        parts["stages"] = [parts.pop(f"stage {k}") for k in range(2)]
        parts["stages_forward"] = [parts.pop(f"forward {k}") for k in range(2)]
        assert 0 < sum(speedup.sharded_terms(parts, process.ask("link", devices=2, repeats=1), 1e3).values()) < 60
        with pytest.raises(RuntimeError, match="method='nosuch'"):
            process.ask("prepare", name="bad", config="configs/digits.py", fields={"method": "nosuch"})
    finally:
        process.close()


def test_a_process_that_ended_is_told(monkeypatch):
    monkeypatch.chdir(speedup.Path(__file__).parent)  # where there is no such module
    process = Process(1, {}, "experiments_nowhere")
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"hello {}: the process ended with code 1"):
                process.ask("hello")
    finally:
        process.close()


@pytest.mark.slow
def test_the_reference_has_our_parameters():
    process = Process(1, {}, "experiments.reference_flax")
    try:
        for model, size in [
            ({"depth": 20, "width": 16, "wide": False, "classes": 10}, 269_722),
            ({"depth": 16, "width": 64, "wide": True, "classes": 10}, 2_748_890),
        ]:
            assert process.ask("prepare", name="", model=model, batch=2, image=[8, 8, 3])["parameters"] == size
            assert len(process.ask("step", name="", steps=1)["seconds"]) == 1
    finally:
        process.close()


def test_the_table():
    prediction = {"row": "coarse_tail", "stages": 2, **speedup.prediction(PARTS, LINK, 30.0, 2)}
    spread = {"median": 1.5, "min": 1.25, "max": 1.75}
    row = {"row": "coarse_tail", "stages": 2, "seconds": spread, "rho": spread}
    for alone, predicted in [([1.9], "1.90"), ([2.25, 1.875], "1.90 (1.88 .. 2.25)")]:
        prediction["by_process"] = [{"rho": rho} for rho in alone]
        text = speedup.markdown(json.loads(json.dumps({"measured": [row], "predictions": [prediction]})))
        assert text.splitlines()[-1] == (
            f"| 2 | coarse_tail | 1.500 | 1.50 (1.25 .. 1.75) | {predicted} |  | 1.59 < 7.44 | 18.4% | 33% |"
        )
