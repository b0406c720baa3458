"""What reading and writing checkpoints does to the process beside: nothing, and nothing is said."""

import contextlib
import gc
import logging
import os
import resource
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from absl import logging as absl_logging

from lpjax.config.schema import CheckpointConfig
from lpjax.training import checkpoint

ARRAYS = {f"unit{i}.kernel": np.random.default_rng(i).standard_normal((60, 60)) for i in range(40)}


def process_wide():
    """What libraries are wont to change for all others."""
    loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio")]
    logs = [(logger.level, logger.disabled, list(logger.filters), list(logger.handlers)) for logger in loggers]
    return logs, list(warnings.filters), warnings.showwarning, sys.unraisablehook, threading.excepthook


@pytest.fixture(autouse=True)
def as_before(capfd, caplog):
    """Each test leaves the process as it was, and neither orbax nor its threads, now or later, say anything."""
    before = process_wide()
    yield
    gc.collect()
    time.sleep(0.2)
    assert process_wide() == before
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.get_records("call") if "orbax" in record.pathname]


@contextlib.contextmanager
def largest_file(size):
    """As on a full disk: bytes that the system lets this process write to one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(folder, steps=(1,)):
    with contextlib.closing(checkpoint.Writer(folder, CheckpointConfig())) as writer:
        for step in steps:
            writer.save(step, ARRAYS, {}, None)
        writer.wait()


@pytest.mark.parametrize("name", ["plain", "[red] 100 % *?#"])
def test_written_and_read(name, tmp_path):
    folder = tmp_path / name / "saved"
    folder.parent.mkdir()
    before = process_wide()
    save(folder, steps=(1, 2))
    assert process_wide() == before
    read = checkpoint.read(folder, 2).arrays
    assert read.keys() == ARRAYS.keys()
    assert all(np.array_equal(read[key], ARRAYS[key]) for key in ARRAYS)


@pytest.mark.parametrize("part", ["state/manifest.ocdbt", "state/d/*", "state/ocdbt.process_0/d/*", "state/_METADATA"])
@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, path.stat().st_size // 2)])
def test_damaged(part, damage, tmp_path):
    save(tmp_path / "saved")
    before = process_wide()
    for path in (tmp_path / "saved" / "1").glob(part):
        damage(path)
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.read(tmp_path / "saved", 1)
    assert process_wide() == before


@pytest.mark.parametrize("size", [0, 12288])
def test_that_cannot_be_written(size, tmp_path):
    with largest_file(size), pytest.raises(checkpoint.CheckpointError, match="step 1 could not be written"):
        save(tmp_path / "saved")


def test_whose_writer_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.Writer(tmp_path, CheckpointConfig())


def test_two_writers_at_once(tmp_path):
    """The first that is made is closed first."""
    writers = [checkpoint.Writer(tmp_path / name, CheckpointConfig()) for name in ("one", "other")]
    for writer in writers:
        writer.close()


def test_what_others_log_meanwhile_is_heard(tmp_path, caplog):
    with contextlib.closing(checkpoint.Writer(tmp_path / "saved", CheckpointConfig())):
        absl_logging.error("of another library")
    assert caplog.messages == ["of another library"]
