"""Several processes on one computer, with CPU devices: same numbers as one process; none hangs when another is lost."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_makers import jpeg, make_folder
from test_main import environment

from lpjax.parallel import join
from lpjax.parallel import processes as library
from lpjax.training.workdir import CLOCK

TESTS = Path(__file__).parent


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def processes(task, count, *, join=None, only=None, x64=True, **options):
    """The processes of a task of `distributed_worker`; ended when the block is."""
    variables = environment(JAX_ENABLE_X64=str(int(x64)), PYTHONPATH=f"{TESTS.parent}:{TESTS}")
    port, started = free_port(), []
    try:
        for process in range(count) if only is None else [only]:
            where = {"coordinator": f"localhost:{port}", "num_processes": count, "process_id": process} | (join or {})
            text = json.dumps({"join": where if count > 1 else {}, **options})
            command = [sys.executable, str(TESTS / "distributed_worker.py"), task, text]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=variables, **pipes))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def finish(started, timeout=240):
    """Exit codes, and what each wrote to stderr."""
    errors = [process.communicate(timeout=timeout)[1] for process in started]
    return [process.returncode for process in started], errors


def complete(task, count, **options):
    with processes(task, count, **options) as started:
        codes, errors = finish(started)
    assert codes == [0] * count, "\n".join(errors)


def test_collectives_between_processes(tmp_path):
    """The worker asserts; each says in the end how much it has compared."""
    with processes("helpers", 2, workdir=str(tmp_path), x64=False) as started:
        outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [out.splitlines()[-1] for out, _ in outputs] == ["compared 40 arrays"] * 2  # Gloo prints lines of its own


def images_folder(folder):
    rng = np.random.default_rng(0)
    splits = [{f"{'ab'[i % 2]}/{i}.jpg": jpeg(rng) for i in range(count)} for count in (40, 10)]
    return str(make_folder(folder, *splits))


@pytest.mark.slow
@pytest.mark.parametrize("data", ["resident", "streamed"])
def test_two_processes_compute_what_one_does(data, tmp_path):
    """Batches of both meshes; training and evaluation on the second."""
    if data == "resident":  # with a table, which lies over the whole mesh
        fields, shapes = {"multiplier": "per_example", "data__crop": 0}, [(2, 2), (4, 1)]
    else:  # on columns that cross both processes, and so do not see the same examples as with a row of stages
        folder = images_folder(tmp_path / "data")
        fields, shapes = {"data__name": "folder", "data__dir": folder, "data__image_size": 8}, [(4, 1), (2, 2)]
    results = []
    for count in (1, 2):
        complete("train", count, out=str(tmp_path / f"{count}.npz"), meshes=shapes, fields=fields)
        results.append(dict(np.load(tmp_path / f"{count}.npz")))
    one, two = results
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def lost_line(error):
    (line,) = [line for line in error.splitlines() if line.startswith("lpjax: ")]
    return line


@pytest.mark.parametrize("victim, idle", [(0, False), (1, True)], ids=["the first, in a step", "the second, idle"])
def test_a_lost_process_ends_the_other(victim, idle):
    with processes("endless", 2, join={"heartbeat_seconds": 3}, idle=idle) as started:
        for process in started:
            assert any(line == "running\n" for line in process.stdout)  # Gloo says something first
        started[victim].kill()
        killed = time.monotonic()
        (code,), (error,) = finish([started[1 - victim]], timeout=60)
        took = time.monotonic() - killed
    assert code == library.EXIT_LOST_PROCESS, error
    assert "lost another process after step " in lost_line(error)
    assert f"told process {1 - victim} of 2" in lost_line(error)
    assert took < 20, "three seconds' silence, and time for a busy computer"


@pytest.mark.parametrize(
    "codes, expected",
    [([3, 3], [3, 3]), (["raise", "raise"], [1, 1]), ([None, 2], [4, 2]), ([2, None], [2, 4])],
    ids=str,
)
def test_exit_codes(codes, expected):
    with processes("end", 2, join={"heartbeat_seconds": 3}, codes=codes) as started:
        actual, errors = finish(started)
    assert actual == expected, "\n".join(errors)
    for code, error in zip(expected, errors, strict=True):
        assert ("lpjax: lost another process before the first step" in error) == (code == 4), error
        assert ("RuntimeError: a fault" in error) == (code == 1), error


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"coordinator": "a:1"}, "--coordinator=a:1 without --num_processes and --process_id: expected all three"),
        ({"detect": True, "process_id": 0}, "--distributed with --process_id=0: expected one or the other"),
        ({"coordinator": "a:70000", "num_processes": 2, "process_id": 0}, "a:70000: expected HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "--num_processes=0: expected at least 1"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2: expected 0 to 1"),
        ({"heartbeat_seconds": 1}, "--heartbeat_seconds=1: expected at least 2"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(ValueError, match=message):
        library.initialize(**flags)


def lpjax(folder, *, steps, join=(), **variables):
    """`lpjax.main` on a small network, in double precision so that every way there gives the same numbers."""
    fields = ("model.blocks=4", "model.width=8", "log_every=1", "eval.every_epochs=0", "checkpoint.every_steps=4")
    command = [sys.executable, "-m", "lpjax.main", "--config=configs/digits_mlp.py", f"--workdir={folder}"]
    command += [f"--config.{field}" for field in (*fields, f"num_steps={steps}")]
    exact = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *join], cwd=TESTS.parent, env=environment(**exact | variables), **pipes)


def is_taken(port):
    with socket.socket() as one:
        return one.connect_ex(("localhost", port)) == 0


def by_slurm(folder, **options):
    """Two processes as srun starts them; JAX makes the port of the job's number."""
    port = next(port for port in range(61440, 65536) if not is_taken(port))
    job = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return [
        lpjax(folder, join=["--distributed"], SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **job, **options)
        for i in range(2)
    ]


def by_flags(folder, **options):
    where = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--heartbeat_seconds=3"]
    return [lpjax(folder, join=[*where, f"--process_id={i}"], **options) for i in range(2)]


def lines(folder):
    """Of metrics.jsonl, without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in found]


@pytest.mark.slow
def test_a_run_goes_on_after_a_lost_process(tmp_path):
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [process.kill() for process in (alone, *first, *second)])
        first = second = ()
        alone = lpjax(tmp_path / "alone", steps=40)
        codes, errors = finish([alone])
        assert codes == [0], errors
        first = by_flags(tmp_path / "both", steps=40)
        assert any(line.startswith("step 10/") for line in first[0].stdout)
        first[1].kill()
        codes, errors = finish(first)
        assert codes == [library.EXIT_LOST_PROCESS, -9], errors
        assert "lost another process after step 1" in lost_line(errors[0])
        second = by_slurm(tmp_path / "both", steps=40)
        (out, error), (other_out, _) = (process.communicate(timeout=240) for process in second)
        assert [process.returncode for process in second] == [0, 0], error
    assert "going on from the checkpoint of step 8" in out
    assert "step " not in other_out, "only process 0 prints"
    for ours, expected in zip(lines(tmp_path / "both"), lines(tmp_path / "alone"), strict=True):
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name] == (value if name == "kind" else pytest.approx(value, rel=1e-9, abs=1e-9)), name


def test_a_process_that_waits_says_so(capsys, monkeypatch):
    monkeypatch.setattr(join, "SILENT_SECONDS", 0.01)
    with join.waiting("process 1 of 4", 300):
        time.sleep(0.2)
    said = re.sub(r"\d\d:\d\d:\d\d", "NOW", capsys.readouterr().err)
    assert (
        said == "lpjax: process 1 of 4 has waited for the others since NOW; it ends if they do not come within 300 s\n"
    )
    with join.waiting("process 1 of 4", 300):
        pass
    time.sleep(0.1)
    assert not capsys.readouterr().err
