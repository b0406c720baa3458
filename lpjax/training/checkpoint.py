"""Checkpoints on disk: named arrays and what is to be known of them, whole, verified, and never executed.

    FOLDER/STEP/state    the arrays, by orbax
    FOLDER/STEP/meta     JSON: what the run says, and `digest`, the SHA-256 of arrays and JSON together

orbax writes a step under another name and renames it when it is complete, so a process killed while it saves leaves no
half checkpoint.  It would read flipped bits back without a word: hence the digest, taken before writing and checked
after reading.  Arrays and JSON are all that is read: no pickles, nothing that a file could make us import or call.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
_ORBAX = str(Path(ocp.__file__).parent)


class CheckpointError(Error, OSError):
    """A checkpoint could not be written."""


@dataclass(frozen=True, eq=False)
class Saved:
    """One checkpoint.

    Attributes:
      step: After which it was saved.
      arrays: Of the state, by name.
      meta: What the run says of it, in JSON's types.
    """

    step: int
    arrays: Arrays
    meta: dict[str, Any]


class Writer:
    """Writes checkpoints in the background: the last `keep`, and the best `keep_best` by test accuracy.

    For one process.  orbax logs nothing until it is closed.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        """Make the folder, if it is not there, and remove from it what a killed process left of a checkpoint.

        Args:
          folder: Of the run's checkpoints.
          config: How many are kept.
        """
        self._folder = folder
        best = policies.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], n=config.keep_best,
                              keep_checkpoints_without_metrics=False)  # fmt: skip
        options = ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=True,
            save_decision_policy=policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), best]),
            multiprocessing_options=_single_process(),
        )
        folder.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_without_orbax_logs())
            path = stack.enter_context(_without_patterns(folder))
            self._manager = ocp.CheckpointManager(path, options=options, handler_registry=_handlers())
            self._newest = max(self._manager.all_steps(), default=None)
            self._until_closed = stack.pop_all()
        self._step: int | None = None

    def save(self, step: int, arrays: Arrays, meta: dict[str, Any], test_accuracy: float | None) -> None:
        """Start to write a checkpoint, when the one before is done.

        Args:
          step: Steps done in the state.
          arrays: Must not be changed afterwards.
          meta: In JSON's types.
          test_accuracy: None where the state was not tested.

        Raises:
          CheckpointError: This checkpoint or the one before could not be written.
        """
        meta = {**meta, "digest": digest(arrays, meta)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta))
        self.wait()
        metrics = None if test_accuracy is None else {_METRIC: test_accuracy}
        with self._errors_of(step):
            self._manager.save(step, args=items, metrics=metrics, force=True)
        self._step = step

    def wait(self) -> None:
        """Return when what was saved is on disk.

        Raises:
          CheckpointError: It could not be written.
        """
        if self._step is not None:
            with self._errors_of(self._step):
                self._manager.wait_until_finished()
            self._newest, self._step = self._step, None

    @contextlib.contextmanager
    def _errors_of(self, step: int) -> Iterator[None]:
        """Makes a CheckpointError of any error while the checkpoint of a step is written."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise what they like
            self._step = None
            last = "there is none yet" if self._newest is None else f"the last good one is of step {self._newest}"
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} could not be written ({_one_line(error)}); {last}: see "
                f"to the disk, then start the same command again"
            ) from error

    def close(self) -> None:
        """Stop writing; what was not waited for may be lost."""
        # Its error was raised before, or comes from the exception under way.
        with self._until_closed, contextlib.suppress(Exception):
            self._manager.close()


def _single_process() -> Any:
    """orbax's options with which this process reads and writes without waiting for others."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


class _ArrayHandler(ocp.type_handlers.NumpyHandler):
    """How orbax reads and writes arrays, but where one fails it waits for the others before it says so.

    Its own handler leaves them under way and closes the event loop that they report to: each then prints a traceback,
    from another thread and at any later time.
    """

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any]) -> list[np.ndarray]:
        return [array for (array,) in await _each(super().deserialize, infos, args)]

    async def _background_serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any]) -> None:
        await _each(super()._background_serialize, values, infos, args)


async def _each(operation: Callable[..., Awaitable[Any]], *arguments: Sequence[Any]) -> list[Any]:
    """What an operation on lists returns for each of their entries, or the first error, when all have ended."""
    calls = [operation(*([entry] for entry in entries)) for entries in zip(*arguments, strict=True)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _handlers() -> Any:
    """orbax's registry of what reads and writes the items of a checkpoint."""
    types = ocp.type_handlers.create_type_handler_registry((np.ndarray, _ArrayHandler()))
    handler, registry = ocp.PyTreeCheckpointHandler(type_handler_registry=types), ocp.DefaultCheckpointHandlerRegistry()
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add("state", args, handler)
    return registry


@contextlib.contextmanager
def _without_orbax_logs() -> Iterator[None]:
    """Drops what orbax logs: what it cannot read or write, in many places and tracebacks, before we say it in one line.

    It logs by absl, also from its background threads; what others log by absl stays.
    """

    def is_of_others(record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(_ORBAX)

    logger = logging.getLogger("absl")
    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


@contextlib.contextmanager
def _without_patterns(folder: Path) -> Iterator[Path]:
    """The path of a folder as orbax can be given it, which takes brackets in paths for patterns of names."""
    folder = folder.absolute()
    if "[" not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lpjax-") as place:
        link = Path(place) / "checkpoints"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _one_line(error: Exception) -> str:
    """An error in a line."""
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return line if len(line) < 300 else f"{line[:300]} .."


def digest(arrays: Arrays, meta: dict[str, Any]) -> str:
    """What tells damage: the SHA-256, in hex, of the arrays and of `meta`.

    Args:
      arrays: Their names, types, shapes and bytes are taken.
      meta: Taken without its own digest.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {arrays[name].shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    rest = {name: value for name, value in meta.items() if name != "digest"}
    total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that were written to their end, oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def read(folder: Path, step: int) -> Saved:
    """Read one checkpoint and verify it.

    Args:
      folder: Of the run's checkpoints.
      step: Which one.

    Raises:
      BadInput: It is damaged, or not there.
    """
    items = ocp.args.Composite(state=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore())
    try:
        with _without_orbax_logs(), _without_patterns(folder) as path:
            handler = ocp.CompositeCheckpointHandler(handler_registry=_handlers())
            reader = ocp.Checkpointer(handler, multiprocessing_options=_single_process())
            found = reader.restore(path / str(step), args=items)
        arrays, meta = dict(found["state"]), found["meta"]
        expected, actual = meta["digest"], digest(arrays, meta)
    except Exception as error:  # there are as many kinds as there are ways to damage files
        raise BadInput(f"cannot be read ({_one_line(error)})") from error
    if actual != expected:
        raise BadInput(f"is not what was written (SHA-256 {actual[:12]}.., expected {expected[:12]}..)")
    return Saved(step, arrays, meta)


def newest_good(folder: Path) -> tuple[Saved | None, dict[int, str]]:
    """Find the newest checkpoint that can be read and verified, and why each newer one cannot.

    Returns:
      The checkpoint, or None where there is none at all; and what is wrong with the newer ones, by step.

    Raises:
      BadInput: There are checkpoints, and every one is damaged.
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
    """Move a damaged checkpoint, whose step will be written again, out of the folder.

    Returns:
      Where to: `FOLDER/../damaged-STEP`, or with a number behind it if that is taken.
    """
    number = 0
    while (target := folder.parent / f"damaged-{step}{f'-{number}' if number else ''}").exists():
        number += 1
    os.rename(folder / str(step), target)
    return target
