"""Faults, each made to happen: what a run does then, and that it ends with the numbers of a run that had none.

Where the process matters it is the command line of a person, on two devices; elsewhere the loop in this process.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import math
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_run
from rich.console import Console
from tensorboardX import record_writer
from test_main import ROOT, command, environment

from lpjax.config.schema import RecoveryConfig
from lpjax.errors import CorruptDataError
from lpjax.training import checkpoint, loop, stop, workdir
from lpjax.training.log import NonFiniteError
from lpjax.training.resume import checkpoints
from lpjax.training.workdir import CLOCK

STEPS = 12
SETTINGS = {
    "model.depth": 8,
    "model.width": 4,
    "aux.blocks_per_stage": 0,
    "num_stages": 2,
    "batch_size": 16,
    "num_steps": STEPS,
    "log_every": 1,
    "eval.every_epochs": 0,
    "checkpoint.every_steps": 3,
    "checkpoint.keep": 9,
}
FLAGS = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
TOO_HIGH = [
    "--config.optimizer.learning_rate=1e30",
    "--config.optimizer.warmup_epochs=0.0",
    "--config.recovery.policy=reduce",
    "--config.recovery.factor=1e-31",
]
HANGS = 300
"""Seconds."""


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """Processes share what they compile; not with other tests, as a killed one may leave half a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("PYTHONUNBUFFERED", "1")
        yield


def lpjax(folder, *flags, largest_file=None):
    """The command, to its end; largest_file: bytes that the system lets it write to one file."""
    limit = ["sh", "-c", f'ulimit -f {largest_file // 512}; exec "$0" "$@"'] if largest_file else []
    return subprocess.run(
        [*limit, *command(*FLAGS, f"--workdir={folder}", *flags)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@contextlib.contextmanager
def running(folder, moment, *flags):
    """The command, up to a moment; then it is waited for."""
    with (
        folder.with_name("output").open("w+") as output,
        subprocess.Popen(
            command(*FLAGS, f"--workdir={folder}", *flags), cwd=ROOT, env=environment(), stdout=output, stderr=output
        ) as process,
    ):
        while not moment():
            assert process.poll() is None, f"ended too early:\n{printed(folder)}"
            time.sleep(0.001)
        yield process
        process.wait(HANGS)


def printed(folder):
    return folder.with_name("output").read_text()


def kill(folder, moment, *flags):
    with running(folder, moment, *flags) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


def finish(folder, *flags):
    done = lpjax(folder, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def complaint(done):
    """The one line that a process said in the end."""
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lpjax: ")]
    return line


def lines(folder):
    """metrics.jsonl without the clock."""
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in entry.items() if name not in CLOCK} for entry in entries]


def assert_same_arrays(saved, expected):
    """Bit for bit."""
    assert saved.step == expected.step
    assert saved.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        ours = saved.arrays[name]
        assert (ours.dtype, ours.shape, ours.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def last_saved(folder):
    return checkpoint.read(checkpoints(folder), checkpoint.steps(checkpoints(folder))[-1])


def assert_same_end(folder, expected):
    """Every array and every line."""
    assert_same_arrays(last_saved(folder), last_saved(expected))
    assert lines(folder) == lines(expected)
    assert not list(checkpoints(folder).glob("*tmp*"))
    assert json.loads((folder / "result.json").read_text())["ended"] == "finished"


def copy(expected, folder, step):
    """What a run left that was killed after the checkpoint of a step, so late that later lines were written."""
    shutil.copytree(expected, folder)
    for later in checkpoint.steps(checkpoints(folder)):
        if later > step:
            shutil.rmtree(checkpoints(folder) / str(later))
    (folder / "result.json").unlink()
    return folder


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def largest(folder, step):
    return max((path for path in (checkpoints(folder) / str(step)).rglob("*") if path.is_file()), key=os.path.getsize)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(folder)
    return folder


def quiet():
    return Console(file=io.StringIO(), width=1000)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of 6 steps with checkpoints after 2, 4 and 6, and its folder after an uninterrupted training."""
    run = small_run(
        num_steps=6,
        mesh__stage=1,
        multiplier="mean",
        log_every=1,
        eval__every_epochs=0,
        checkpoint={"every_steps": 2, "keep": 9},
    )
    folder = tmp_path_factory.mktemp("short") / "run"
    loop.train(run, folder, quiet())
    return run, folder


# ---------------------------------------------------------------- killed and stopped


def test_killed_at_any_moment(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    saved = checkpoints(folder)
    half = saved / "6.orbax-checkpoint-tmp"
    kill(folder, (folder / "lock").exists)
    assert not checkpoint.steps(saved)
    kill(folder, half.exists)
    assert half.exists(), "killed during a save"
    assert checkpoint.steps(saved) == [3]
    kill(folder, lambda: "step 8/" in printed(folder))
    assert "going on from the checkpoint of step 3" in printed(folder)
    last = checkpoint.steps(saved)[-1]
    kill(folder, (saved / str(STEPS)).exists)
    assert f"going on from the checkpoint of step {last}" in printed(folder)
    finish(folder)
    assert_same_end(folder, uninterrupted)


@pytest.mark.slow
def test_sigterm_saves(uninterrupted, tmp_path):
    """Sent while the first step compiles: the step is done and saved."""
    folder = tmp_path / "run"
    with running(folder, (folder / "config.json").exists) as process:
        process.terminate()
    assert process.returncode == 75, printed(folder)
    assert "SIGTERM: saved" in printed(folder)
    assert checkpoint.steps(checkpoints(folder)) == [1]
    result = json.loads((folder / "result.json").read_text())
    assert (result["ended"], result["steps"]) == ("interrupted", 1)
    assert "going on from the checkpoint of step 1" in finish(folder)
    shutil.rmtree(checkpoints(folder) / "1")
    assert_same_end(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_that_ask_for_a_stop(number):
    before = signal.signal(number, signal.default_int_handler)  # nohup would have SIGHUP ignored
    try:
        with stop.listening() as requests:
            assert requests.at(1) is None
            signal.raise_signal(number)
            assert requests.at(1) == number
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert stop.StoppedError(number).exit_code == (130 if number == signal.SIGINT else 75)


def test_a_run_under_nohup_goes_on_without_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.listening() as requests:
            signal.raise_signal(signal.SIGHUP)
            assert requests.at(1) is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_terminal_is_closed():
    """Writing to it would be an error (EIO); the process goes on, and its output goes nowhere."""
    program = """
        import os, signal, sys
        from lpjax import cli
        from lpjax.training import stop
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have ignored
        with stop.listening() as requests:
            print("begun", flush=True)
            while requests.at(1) is None:
                pass
            cli.console().print("to nobody")
            sys.exit(40 + requests.at(1))
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 100).strip() == b"begun"
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    try:
        assert process.wait(HANGS) == 40 + signal.SIGHUP
    finally:
        process.kill()


# ---------------------------------------------------------------- the disk


def test_no_room_for_a_checkpoint(uninterrupted, tmp_path):
    """As on a full disk, where none can be mounted: files end at 16 kB, longer than structure.json."""
    folder = tmp_path / "run"
    done = lpjax(folder, largest_file=16384)
    assert done.returncode == 1, done.stderr
    said = complaint(done)
    assert f"{checkpoints(folder)}: the checkpoint of step 3 could not be written" in said
    assert "there is none yet" in said
    assert checkpoint.steps(checkpoints(folder)) == []
    finish(folder)
    assert_same_end(folder, uninterrupted)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that could not be closed
@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_no_room_for_figures(name, short, tmp_path, monkeypatch):
    """Whichever file it is: the run stops, and goes on when there is room."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, whole = short
    folder = copy(whole, tmp_path / "run", 4)
    module, to_fail = (workdir.json, "dumps") if name == "metrics.jsonl" else (record_writer.RecordWriter, "write")
    monkeypatch.setattr(module, to_fail, full)
    with pytest.raises(OSError, match="No space left"):
        loop.train(run, folder, quiet())
    monkeypatch.undo()
    loop.train(run, folder, quiet())
    assert_same_end(folder, whole)


# ---------------------------------------------------------------- damaged files


DAMAGES = {
    "gone": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, r: path.write_bytes(path.read_bytes()[: r.randrange(path.stat().st_size)]),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
} | {f"flip {i}": lambda path, r: flip(path, r.randrange(path.stat().st_size), r.randrange(8)) for i in range(4)}
"""Ways to damage a file, each with a random generator."""


def test_whatever_is_damaged_no_wrong_array_comes_back(short, tmp_path):
    """Every file of a checkpoint, in every way: it is called damaged, or nothing that is read was."""
    _, whole = short
    folder, step = checkpoints(whole), 6
    expected, outcomes = checkpoint.read(folder, step), {}
    files = sorted(path.relative_to(folder) for path in (folder / str(step)).rglob("*") if path.is_file())
    assert len(files) > 8
    for number, (name, (kind, damage)) in enumerate(itertools.product(files, DAMAGES.items())):
        shutil.copytree(folder / str(step), tmp_path / str(number) / str(step))
        damage(tmp_path / str(number) / name, random.Random(number))
        try:
            saved = checkpoint.read(tmp_path / str(number), step)
            assert_same_arrays(saved, expected)
            assert saved.meta == expected.meta, (name, kind)
            outcomes[name, kind] = "right"
        except ValueError:
            outcomes[name, kind] = "damaged"
        shutil.rmtree(tmp_path / str(number))
    of_state = {outcomes[name, kind] for name, kind in outcomes if "/d/" in str(name) and kind.startswith("flip")}
    assert "damaged" in of_state


def test_damaged_older_checkpoints_do_not_stop_a_run(short, tmp_path):
    """No file of theirs is needed."""
    run, whole = short
    saved = checkpoint.read(checkpoints(whole), 6)
    files = [path.relative_to(whole) for path in (checkpoints(whole) / "2").rglob("*") if path.is_file()]
    for name, kind in zip(files, itertools.cycle(("gone", "zeros")), strict=False):
        folder = copy(whole, tmp_path / "run", 4)
        DAMAGES[kind](folder / name, random.Random(0))
        writer = checkpoint.Writer(checkpoints(folder), run.config.checkpoint)
        writer.save(6, saved.arrays, saved.meta, None)
        writer.wait()
        writer.close()
        good, damaged = checkpoint.newest_good(checkpoints(folder))
        assert (good.step, damaged) == (6, {}), (name, kind)
        shutil.rmtree(folder)


def test_back_to_the_newest_good_checkpoint(uninterrupted, tmp_path):
    folder = copy(uninterrupted, tmp_path / "run", STEPS)
    flip(largest(folder, 12), 2000)
    os.truncate(largest(folder, 9), 1000)
    said = finish(folder)
    assert re.search(r"the checkpoint of step 12 (is not what was written|cannot be read) \(", said)
    for step in (12, 9):
        assert f"moved to {folder / f'damaged-{step}'}" in said
        assert (folder / f"damaged-{step}").is_dir()
    assert "going on from the checkpoint of step 6" in said
    assert_same_end(folder, uninterrupted)


@pytest.mark.slow
def test_every_checkpoint_damaged_and_a_restart(uninterrupted, tmp_path):
    folder = copy(uninterrupted, tmp_path / "run", 6)
    for step in (3, 6):
        os.truncate(largest(folder, step), 1000)
    done = lpjax(folder)
    assert done.returncode == 2, done.stderr
    said = complaint(done)
    assert "no checkpoint is whole: that of step 6 " in said
    assert "that of step 3 " in said
    assert "--restart" in said
    before = lines(folder)
    assert f"files of an earlier run moved to {folder / 'previous-1'}" in finish(folder, "--restart")
    assert lines(folder / "previous-1") == before
    assert checkpoint.steps(checkpoints(folder / "previous-1")) == [3, 6]
    assert_same_end(folder, uninterrupted)


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', '{"kind": "train", "step": 5', "\0" * 50])
def test_a_torn_last_line(tail, short, tmp_path):
    run, whole = short
    folder = copy(whole, tmp_path / "run", 4)
    written = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(written[:4]) + tail)
    loop.train(run, folder, quiet())
    assert_same_end(folder, whole)


# ---------------------------------------------------------------- a workdir that cannot be used


def test_held_by_another_process(tmp_path):
    with workdir.lock(tmp_path / "run"):
        done = lpjax(tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert f"another run is writing to it (process {os.getpid()} on " in complaint(done)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no folder that refuses files even to root")
def test_read_only():
    done = lpjax("/sys/kernel")
    assert done.returncode == 2, done.stderr
    assert "workdir=/sys/kernel: expected a folder that can be written to" in complaint(done)


def test_a_workdir_that_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"run-\xff")
    with pytest.raises(workdir.WorkdirError, match="expected a name in UTF-8"), workdir.lock(folder):
        pass
    assert not folder.exists()


def test_a_test_that_fails_does_not_lose_the_training(short, tmp_path):
    run, _ = short

    def evaluate(state, data):
        raise CorruptDataError("all test images are damaged")

    with pytest.raises(CorruptDataError):
        loop.train(dataclasses.replace(run, evaluate=evaluate, num_steps=5), tmp_path / "run", quiet())
    assert checkpoint.newest_good(checkpoints(tmp_path / "run"))[0].step == 5


def test_of_another_run(uninterrupted, tmp_path):
    folder = copy(uninterrupted, tmp_path / "run", STEPS)
    before = lines(folder)
    done = lpjax(folder, "--config.seed=1", "--config.optimizer.learning_rate=0.2", "--config.checkpoint.keep=1")
    assert done.returncode == 2, done.stderr
    said = complaint(done)
    assert "optimizer.learning_rate: 0.1 in the checkpoint, 0.2 now; seed: 0 in the checkpoint, 1 now. Give" in said
    assert lines(folder) == before
    assert checkpoint.steps(checkpoints(folder)) == [3, 6, 9, 12]


def test_a_finished_run_stays_as_it_is(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    assert "is finished already" in finish(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


# ---------------------------------------------------------------- Ctrl-C and figures that are not finite


@pytest.mark.parametrize("presses, steps", [(1, [2, 3]), (2, [2])])
def test_ctrl_c_saves_and_a_second_one_stops_at_once(presses, steps, short, tmp_path):
    """Pressed during step 3."""
    run, whole = short
    folder = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)

    def press(state, batch):
        if int(state.step) + 1 == 3:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return run.step(state, batch)

    with pytest.raises(stop.StoppedError if presses == 1 else KeyboardInterrupt):
        loop.train(dataclasses.replace(run, step=press), folder, quiet())
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.steps(checkpoints(folder)) == steps
    assert json.loads((folder / "result.json").read_text())["ended"] == "interrupted"
    loop.train(run, folder, quiet())
    assert_same_end(folder, whole)


def poisoned(run, at, poison, times=math.inf):
    """The run with (state, figures) after step `at` changed, `times` times."""
    left = [times]

    def step(state, batch):
        number = int(state.step) + 1
        state, figures = run.step(state, batch)
        if number == at and left[0] > 0:
            left[0] -= 1
            return poison(state, dict(figures))
        return state, figures

    return dataclasses.replace(run, step=step)


def bad_figure(name, index):
    def poison(state, figures):
        return state, figures | {name: figures[name].at[index].set(jnp.nan)}

    return poison


def bad_multiplier(state, figures):
    """As it is when the update itself overflows: no figure has seen it yet."""
    first, second, *rest = state.multiplier
    return dataclasses.replace(state, multiplier=(first, second * jnp.inf, *rest)), figures


@pytest.mark.parametrize(
    "at, poison, message, last_good",
    [
        (5, bad_figure("task_loss", ()), "task_loss is nan in step 5; lower", 4),
        (3, bad_figure("stage_loss", 2), "stage_loss at stage 2 is nan in step 3; lower", 2),
        (4, bad_figure("violation", 0), "violation at interface 1 is nan in step 4; lower", 2),
        (6, bad_figure("multiplier_norm", 2), "multiplier_norm at interface 3 is nan in step 6; lower", 4),
        (4, bad_multiplier, r"interface\.\d\.multiplier is not finite after step 4; lower", 2),
        (3, bad_multiplier, r"at (stage|interface) \d is (nan|inf) in step 4; lower", 2),
    ],
)
def test_non_finite_stops_and_keeps_the_last_good_checkpoint(at, poison, message, last_good, short, tmp_path):
    run, whole = short
    folder = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=message):
        loop.train(poisoned(run, at, poison), folder, quiet())
    assert json.loads((folder / "result.json").read_text())["ended"] == "error"
    good, damaged = checkpoint.newest_good(checkpoints(folder))
    assert (good.step, damaged) == (last_good, {})
    assert_same_arrays(good, checkpoint.read(checkpoints(whole), last_good))
    assert all(np.isfinite(array).all() for array in good.arrays.values())
    loop.train(run, folder, quiet())
    assert_same_end(folder, whole)


def rates(folder):
    return [entry["learning_rate"] for entry in lines(folder) if entry["kind"] == "train"]


def recoveries(folder):
    return [(entry["step"], entry["factor"]) for entry in lines(folder) if entry["kind"] == "recovery"]


def test_back_to_a_checkpoint_with_a_smaller_step_size(short, tmp_path):
    """A figure of step 5 is bad once: steps 5 and 6 are taken again from the checkpoint of step 4, at half the rate."""
    run, whole = short
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, recovery=RecoveryConfig(policy="reduce")))
    console = quiet()
    result = loop.train(poisoned(run, 5, bad_figure("violation", 0), times=1), tmp_path, console)
    assert "violation at interface 1 is nan in step 5; " in console.file.getvalue()
    assert "going back to step 4 with learning rates times 0.5" in console.file.getvalue()
    assert result["ended"] == "finished"
    assert recoveries(tmp_path) == [(4, 0.5)]
    assert rates(tmp_path) == rates(whole)[:4] + [rate / 2 for rate in rates(whole)[4:]]
    assert last_saved(tmp_path).meta["factor"] == 0.5
    assert_same_arrays(*(checkpoint.read(checkpoints(folder), 4) for folder in (tmp_path, whole)))


def test_gives_up_after_so_many_times(short, tmp_path, monkeypatch):
    run, _ = short
    recovery = RecoveryConfig(policy="reduce", factor=0.1, times=2)
    run = poisoned(
        dataclasses.replace(run, config=dataclasses.replace(run.config, recovery=recovery)), 5, bad_multiplier
    )
    factors = []
    monkeypatch.setattr(loop, "with_learning_rates", lambda run, factor: factors.append(factor) or run)
    console = quiet()
    with pytest.raises(NonFiniteError, match="in step 6; lower"):
        loop.train(run, tmp_path, console)
    assert console.file.getvalue().count("going back to step 4") == 2
    np.testing.assert_allclose(factors, [0.1, 0.01])
    assert recoveries(tmp_path)[-1] == (4, pytest.approx(0.01))
    assert last_saved(tmp_path).step == 4


@pytest.mark.slow
def test_killed_after_a_recovery(tmp_path):
    """A learning rate that is too high from the first step on; the smaller one is in the checkpoints."""
    expected, folder = tmp_path / "expected", tmp_path / "run"
    said = finish(expected, *TOO_HIGH)
    assert "in step 2; " in said
    assert "going back to step 0 with learning rates times 1e-31" in said
    assert recoveries(expected) == [(0, 1e-31)]
    assert max(rates(expected)) == pytest.approx(0.1)
    kill(folder, lambda: "going back to step 0" in printed(folder), *TOO_HIGH)
    kill(folder, (checkpoints(folder) / "6").exists, *TOO_HIGH)
    assert "going back to step 0" not in finish(folder, *TOO_HIGH)
    assert_same_end(folder, expected)
