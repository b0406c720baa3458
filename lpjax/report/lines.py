"""The metrics of metrics.jsonl, of a run that is finished or not, with fewer points than there are lines."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

POINTS = 1000
"""Of a line that is drawn, at most."""

DRAWN = ("train", "eval")
KINDS = (*DRAWN, "recovery", "phase")
NO_METRICS = ("kind", "step", "epoch", "seconds")
"""Fields of a line that say what it is of."""

Row = dict[str, float | str | tuple[float, ...] | None]

_decode = msgspec.json.Decoder(Row).decode


class Line(NamedTuple):
    """One metric, of one stage or interface.

    Attributes:
      step: [n].
      seconds: [n], since the run's start; NaN where not known.
      value: [n].
      points: How many there were before some were left out.
    """

    step: np.ndarray
    seconds: np.ndarray
    value: np.ndarray
    points: int


def _parsed(line: bytes) -> Row:
    """Read a line.  msgspec is fast, but does not take the NaN that Python writes.

    Raises:
      ValueError, MsgspecError: It is none.
    """
    try:
        row = _decode(line)
    except msgspec.MsgspecError:
        row = msgspec.convert(json.loads(line), Row)
    step = row.get("step")
    if row.get("kind") not in KINDS or not isinstance(step, float) or step != int(step):
        raise ValueError("not a line of a run")
    return row


def _transposed(values: Sequence[object]) -> np.ndarray:
    """[m, n] of n numbers or rows of at most m; NaN where there are fewer."""
    try:
        return np.atleast_2d(np.array(values, float).T)
    except ValueError:
        rows = [value if isinstance(value, tuple) else (value,) for value in values]
        return np.array(list(itertools.zip_longest(*rows, fillvalue=math.nan)), float)


class Table:
    """What is drawn of metrics.jsonl.

    Attributes:
      rows: The lines, by kind.
      torn: Whether the last line was.
      unread: How many could not be read.
    """

    def __init__(self, path: Path) -> None:
        """Read the file."""
        self.rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
        self.torn, self.unread = False, 0
        with path.open("rb") as file:
            for line in file:
                self.torn = not line.endswith(b"\n")
                if not self.torn:
                    self._add(line)

    @property
    def last_step(self) -> int:
        """Of the last whole line of training or tests; 0 without any."""
        return int(max(_column(self.rows[kind], "step").max(initial=0) for kind in DRAWN))

    @property
    def recoveries(self) -> list[tuple[int, float]]:
        """Where learning rates were made smaller: (step, factor)."""
        return [(int(_number(row, "step")), _number(row, "factor")) for row in self.rows["recovery"]]

    @property
    def phases(self) -> list[str]:
        """Where another method went on, and the indicator that the one before was left for, in words."""
        told = []
        for row in self.rows["phase"]:
            why = [
                f"{name} {own:.3g}" for name, own in row.items() if name not in NO_METRICS and isinstance(own, float)
            ]
            told.append(f"after step {_number(row, 'step'):,.0f} {', '.join([str(row.get('method')), *why])}")
        return told

    @property
    def samples(self) -> list[tuple[int, str, str]]:
        """What a model of text made at tests: (step, prompt, what it went on with)."""
        rows = [row for row in self.rows["eval"] if "test_sample" in row]
        return [(int(_number(row, "step")), str(row.get("test_prompt")), str(row["test_sample"])) for row in rows]

    @property
    def timed(self) -> bool:
        """Whether lines say how many seconds the run had taken."""
        return any("seconds" in rows[-1] for rows in self.rows.values() if rows)

    def _add(self, line: bytes) -> None:
        try:
            row = _parsed(line)
        except (ValueError, msgspec.MsgspecError):
            self.unread += 1
            return
        if row.get("task_loss") == row.get("accuracy") == 0:  # certain and wrong: no batch had reached the last stage
            row["task_loss"] = row["accuracy"] = None
        self.rows[str(row["kind"])].append(row)

    def notes(self) -> list[str]:
        """What was left out, in words."""
        notes = []
        if self.torn:
            notes.append("the last line of metrics.jsonl is torn (being written, or the run was killed): left out")
        if self.unread:
            notes.append(f"{self.unread:,} lines of metrics.jsonl cannot be read: left out")
        if not self.last_step:
            notes.append("no metrics yet")
        return notes

    def lines(self, points: int, step_seconds: float | None) -> dict[str, tuple[Line, ...]]:
        """Lines to draw of the metrics that there are.

        Args:
          points: Of a line, at most.
          step_seconds: Seconds of a step, where the lines of the file have no times.

        Returns:
          By name: one line for each stage or interface, or one.
        """
        made: dict[str, tuple[Line, ...]] = {}
        for rows in (self.rows[kind] for kind in DRAWN):
            step = _column(rows, "step").astype(int)
            seconds = _column(rows, "seconds") if self.timed else step * (step_seconds or math.nan)
            for name in dict.fromkeys(name for row in rows for name in row if name not in NO_METRICS):
                there = [i for i, row in enumerate(rows) if not isinstance(row.get(name), str | None)]
                if there:
                    values = _transposed([rows[i][name] for i in there])
                    made[name] = tuple(with_fewer_points(step[there], seconds[there], own, points) for own in values)
        return made

    def step_seconds(self) -> float | None:
        """Seconds of a step: the median over the times between logged steps; None where not known."""
        step, seconds = (np.diff(_column(self.rows["train"], name)) for name in ("step", "seconds"))
        known = (step > 0) & np.isfinite(seconds)
        return float(np.median(seconds[known] / step[known])) if known.any() else None

    def data_seconds(self) -> float | None:
        """Seconds that a step waits for data: the median of the logged steps; None where not known."""
        values = _column(self.rows["train"], "data_seconds")
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([_number(row, name) for row in rows], float)


def _number(row: Row, name: str) -> float:
    """NaN where there is none."""
    value = row.get(name)
    return value if isinstance(value, float) else math.nan


def extremes(value: np.ndarray, points: int) -> np.ndarray:
    """Choose the points of a line that are drawn.

    Args:
      value: [n].
      points: How many, at most.

    Returns:
      Positions, in order: of the first, the last, and the smallest and the largest of each of equal buckets; all of
      them if n is at most `points`.  NaN counts only in a bucket that has nothing else.
    """
    n = len(value)
    if n <= points:
        return np.arange(n)
    size = math.ceil(n / ((points - 2) // 2))
    buckets = -(-n // size)
    padded = np.concatenate([value, np.full(buckets * size - n, np.nan)]).reshape(buckets, size)
    start = np.arange(buckets) * size
    smallest = np.where(np.isnan(padded), np.inf, padded).argmin(1) + start
    largest = np.where(np.isnan(padded), -np.inf, padded).argmax(1) + start
    return np.unique(np.concatenate([[0, n - 1], smallest, largest]))


def with_fewer_points(step: np.ndarray, seconds: np.ndarray, value: np.ndarray, points: int) -> Line:
    """Make a line of at most `points` points, see `extremes`.

    Args:
      step: [n].
      seconds: [n], since the run's start.
      value: [n].
      points: How many, at most.
    """
    keep = extremes(value, points)
    return Line(step[keep], seconds[keep], value[keep], len(value))
