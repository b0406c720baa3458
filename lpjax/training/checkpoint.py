"""Checkpoints on disk: named arrays and what is to be known of them, whole, verified, and never executed.

    FOLDER/STEP/state    the arrays, by orbax
    FOLDER/STEP/meta     JSON: what the run says, and `digest`, the SHA-256 of arrays and JSON together

orbax writes a step under another name and renames it when it is complete, so a process killed while it saves leaves no
half checkpoint.  It would read flipped bits back without a word: hence the digest, taken before writing and checked
after reading.  Arrays and JSON are all that is read: no pickles, nothing that a file could make us import or call.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from lpjax.config.schema import CheckpointConfig
from lpjax.errors import BadInput, Error
from lpjax.state.canonical import Arrays

_METRIC = "test_accuracy"


class CheckpointError(Error, OSError):
    """A checkpoint could not be written."""


@dataclass(frozen=True, eq=False)
class Saved:
    """One checkpoint.  meta: JSON's types."""

    step: int
    arrays: Arrays
    meta: dict[str, Any]


class Writer:
    """Writes checkpoints in the background: the last `keep`, and the best `keep_best` by test accuracy.

    For one process; the folder is made.  Raises CheckpointError from any method, for this save or an earlier one.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        _quieten()
        self._folder = folder
        best = policies.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], n=config.keep_best,
                              keep_checkpoints_without_metrics=False)  # fmt: skip
        folder.mkdir(exist_ok=True)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                create=False,
                cleanup_tmp_directories=True,
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), best]),
                multiprocessing_options=_alone(ocp.options.MultiprocessingOptions),
            ),
        )
        self._newest = max(self._manager.all_steps(), default=None)
        self._step: int | None = None

    def save(self, step: int, arrays: Arrays, meta: dict[str, Any], test_accuracy: float | None) -> None:
        """Start to write a checkpoint, when the one before is done.  The arrays must not be changed afterwards."""
        meta = {**meta, "digest": digest(arrays, meta)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta))
        self.wait()
        metrics = None if test_accuracy is None else {_METRIC: test_accuracy}
        with self._failing(step):
            self._manager.save(step, args=items, metrics=metrics, force=True)
        self._step = step

    def wait(self) -> None:
        """Until what was saved is on disk."""
        if self._step is not None:
            with self._failing(self._step):
                self._manager.wait_until_finished()
            self._newest, self._step = self._step, None

    @contextlib.contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise what they like
            self._step = None
            last = "there is none yet" if self._newest is None else f"the last good one is of step {self._newest}"
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} could not be written ({_short(error)}); {last}: see to "
                f"the disk, then start the same command again"
            ) from error

    def close(self) -> None:
        """Stop; what was not waited for may be lost."""
        with contextlib.suppress(Exception):  # its error was raised before, or comes from the exception under way
            self._manager.close()


def _alone(options: Callable[..., Any]) -> Any:
    """This process reads and writes without waiting for others."""
    me = jax.process_index()
    return options(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}")


def _short(error: Exception) -> str:
    """An error in a line."""
    text = f"{type(error).__name__}: {error}"
    line = next(iter(text.splitlines()))
    return line if len(line) < 300 else f"{line[:300]} .."


def digest(arrays: Arrays, meta: dict[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of the arrays, and of `meta` without its own digest."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {arrays[name].shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    rest = {name: value for name, value in meta.items() if name != "digest"}
    total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def read(folder: Path, step: int) -> Saved:
    """One checkpoint, verified.

    Raises ValueError where it is damaged.
    """
    _quieten()
    try:
        reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()),
            multiprocessing_options=_alone(ocp.options.MultiprocessingOptions),
        )
        path = folder.absolute() / str(step)
        names = reader.metadata(path).item_metadata["state"].tree
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        items = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=as_numpy), meta=ocp.args.JsonRestore())
        found = reader.restore(path, args=items)
        arrays, meta = dict(found["state"]), found["meta"]
        expected, actual = meta["digest"], digest(arrays, meta)
    except Exception as error:  # there are as many kinds as there are ways to damage files
        raise BadInput(f"cannot be read ({_short(error)})") from error
    if actual != expected:
        raise BadInput(f"is not what was written (SHA-256 {actual[:12]}.., expected {expected[:12]}..)")
    return Saved(step, arrays, meta)


@functools.cache
def _quieten() -> None:
    """What orbax cannot read or write it says in many places and tracebacks, before we say it in one line.

    Where it fails at one array it leaves the others under way; asyncio would report the end of each.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = report_others


def newest_good(folder: Path) -> tuple[Saved | None, dict[int, str]]:
    """The newest checkpoint that can be read and verified, and why each newer one is not, by step.

    None where there is no checkpoint at all.  Raises ValueError where there are, and every one is damaged.
    """
    damaged: dict[int, str] = {}
    for step in reversed(steps(folder)):
        try:
            return read(folder, step), damaged
        except ValueError as error:
            damaged[step] = str(error)
    if damaged:
        reasons = "; ".join(f"that of step {step} {reason}" for step, reason in damaged.items())
        raise BadInput(
            f"{folder}: no checkpoint is whole: {reasons}; restore the folder from a copy, or start afresh with "
            f"--restart"
        )
    return None, damaged


def set_aside(folder: Path, step: int) -> Path:
    """Move a damaged checkpoint, whose step will be written again, to `FOLDER/../damaged-STEP`; returns where to."""
    number = 0
    while (target := folder.parent / f"damaged-{step}{f'-{number}' if number else ''}").exists():
        number += 1
    os.rename(folder / str(step), target)
    return target
