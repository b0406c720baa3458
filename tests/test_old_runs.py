"""Runs that were started before the package was laid out by floors go on, with the numbers that they would have had.

tests/golden/runs has their workdirs: the digits, a ResNet-8 of width 4, K = 3, in double precision, stopped after step
3; expected.json has what each had at steps 4 to 6 when it went on by the version that had begun it.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "golden/runs"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
FIELDS = {
    "seed": 5,
    "model.depth": 8,
    "model.width": 4,
    "num_stages": 3,
    "mesh.stage": 1,
    "log_every": 1,
    "eval.calibration_batches": 2,
    "num_steps": 6,
}


def steps(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == "train"}


@pytest.mark.slow
@pytest.mark.parametrize("method", EXPECTED)
def test_goes_on(method, tmp_path):
    with tarfile.open(FOLDER / f"{method}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    workdir, expected = tmp_path / method, EXPECTED[method]
    third = steps(workdir)[3]
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "-m", "lpjax.main", "--config=configs/digits.py", f"--config.method={method}", *fields]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint of step 3" in done.stdout
    found = steps(workdir)
    assert found[3] == third, "its seconds would be of another run if it had begun anew"
    for step, metrics in expected["steps"].items():
        for name, value in metrics.items():
            now = found[int(step)][name]
            pairs = zip(jax.tree.leaves(now), jax.tree.leaves(value), strict=True)
            assert all(a == pytest.approx(b, rel=1e-8, abs=1e-8) for a, b in pairs), (step, name)
    result = json.loads((workdir / "result.json").read_text())
    assert result["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-8)
