"""The command line, as a person runs it: a process with no devices forced from outside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL_FIELDS = ("model.depth=8", "model.width=4", "aux.blocks_per_stage=0", "log_every=1", "eval.every_epochs=0")
SMALL = [f"--config.{field}" for field in SMALL_FIELDS]


def command(*arguments, config="configs/digits.py"):
    return [sys.executable, "-m", "lpjax.main", f"--config={config}", *arguments]


def environment(**changes):
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return os.environ | {"XLA_FLAGS": " ".join(flags)} | changes


def lpjax(*arguments, config="configs/digits.py", cwd=ROOT, **changes):
    return subprocess.run(
        command(*arguments, config=config), cwd=cwd, env=environment(**changes), capture_output=True, text=True
    )


def test_trains_on_as_many_devices_as_the_mesh_needs(tmp_path):
    folder = tmp_path / "run [b]1"  # what rich would take for markup
    done = lpjax(*SMALL, "--config.num_steps=3", "--config.mesh.data=2", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["device"] == "8 x cpu"
    assert result["mesh"] == {"stage": 4, "data": 2}
    assert "cut into 4 stages, 32 examples a column" in done.stdout
    assert "step 3/3" in done.stdout
    assert f"{folder}/result.json" in done.stdout
    assert "\x1b" not in done.stdout, "no control characters when it is not a terminal"


def test_dry_run(tmp_path):
    done = lpjax(*SMALL, "--config.dry_run=True", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "compiled in" in done.stdout
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert f"a device sends {cost['exchanged_bytes_total'] / 1e6:,.3f} MB in a step (" in done.stdout
    assert min(cost["exchanged_bytes_total"], cost["held_bytes"], cost["temporary_bytes"]) > 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cost.json"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.mehtod=serial"], "mehtod: no such field; did you mean method?"),
        (["--config.num_stages=99", "--config.batch_size=99"], "num_stages=99: the network is a chain of 14 units"),
        (["--nonsense=1"], "Unknown command line flag 'nonsense'"),
        (["nonsense"], "unexpected argument 'nonsense'"),
    ],
)
def test_mistakes_exit_with_2_before_anything_compiles(arguments, message, tmp_path):
    done = lpjax(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_cleanly(tmp_path):
    arguments = [*SMALL, "--config.method=serial", f"--workdir={tmp_path}"]
    with subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode == 130
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["ended"] == "interrupted"
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert result["steps"] in (steps[-1], steps[-1] + 1)


def test_a_platform_that_is_not_here(tmp_path):
    done = lpjax("--config.dry_run=True", f"--workdir={tmp_path}", JAX_PLATFORMS="nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "lpjax: JAX_PLATFORMS=nothing: expected platforms that this machine" in done.stderr
    assert "Traceback" not in done.stderr


def test_help(tmp_path):
    """From any folder: the command and what comes with lpjax; with a config its fields, their values and words."""
    done = subprocess.run(
        [sys.executable, "-m", "lpjax.main", "--help"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--[no]restart: Move what is in the workdir aside" in done.stdout
    for path in ROOT.glob("configs/[!_]*.py"):
        assert f"\n  {path.stem}: " in done.stdout
    done = lpjax("--config.aux.grid=7", "--help", config="digits", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "  --config.aux.grid=7  (int | None)\n      Side of the maps" in done.stdout
    assert "  --config.model.depth=26  (int)\n      Layers, 6n+2.\n" in done.stdout
    assert "  --config.start.workdir=unset  (str | None)\n" in done.stdout
    fields = ("aux.grid=None", "num_steps=1e2", "cuts=2", "cuts=4", "optimizer.learning_rate=1e-2")
    done = lpjax(*(f"--config.{field}" for field in fields), "--help", config="cifar10_resnet56")
    for field in ("aux.grid=unset", "num_steps=100", "cuts=(2, 4)", "optimizer.learning_rate=0.01"):
        assert f"  --config.{field}  (" in done.stdout, field
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name, method, epochs", [("digits_mlp", "layer_parallel", 10), ("digits_vit", "delayed", 40)])
def test_trains_on_digits(name, method, epochs, tmp_path):
    done = lpjax(f"--workdir={tmp_path}", config=f"configs/{name}.py")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["method"], result["num_stages"], result["epochs"]) == (method, 4, epochs)
    assert result["test_accuracy"] > 0.9
    assert max(result.get("relative_violation") or [0.0]) < 0.3


def test_a_network_defined_outside_the_repository(tmp_path):
    """The config file of the residual MLP, in a folder of its own and run from there."""
    text = (ROOT / "configs/digits_mlp.py").read_text().replace("lpjax.configs.digits_mlp:", "mine:")
    (tmp_path / "mine.py").write_text(text)
    done = lpjax("--config.num_steps=2", "--workdir=out", config="mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 x mlp-block" in done.stdout
