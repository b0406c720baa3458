"""The figures of metrics.jsonl, of a run that is finished or not, thinned out."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

POINTS = 1000
"""Of a line that is drawn, at most."""

Value = float | tuple[float, ...] | None


class _Train(msgspec.Struct, tag_field="kind", tag="train", gc=False):
    """A line of metrics.jsonl, so far as it is drawn."""

    step: int
    seconds: float = math.nan
    accuracy: Value = None
    task_loss: Value = None
    aux_task_loss: Value = None
    stage_loss: Value = None
    stage_accuracy: Value = None
    gradient_norm: Value = None
    coarse_error: Value = None
    relative_violation: Value = None
    multiplier_norm: Value = None
    penalty_coef: Value = None
    gradient_cosine: Value = None
    gradient_ratio: Value = None
    data_seconds: Value = None


class _Eval(msgspec.Struct, tag_field="kind", tag="eval", gc=False):
    """Likewise."""

    step: int
    seconds: float = math.nan
    test_accuracy: Value = None
    test_loss: Value = None
    aux_path_accuracy: Value = None
    aux_head_accuracy: Value = None


class _Recovery(msgspec.Struct, tag_field="kind", tag="recovery", gc=False):
    """Likewise."""

    step: int
    factor: float


_decode = msgspec.json.Decoder(_Train | _Eval | _Recovery).decode


class Line(NamedTuple):
    """One figure, of one stage or interface: steps [n], seconds since the run's start [n] (NaN where not known), values
    [n].  points: how many there were before thinning."""

    step: np.ndarray
    seconds: np.ndarray
    value: np.ndarray
    points: int


def _parsed(line: bytes) -> _Train | _Eval | _Recovery:
    """A line.  msgspec is fast, but does not take the NaN that Python writes.

    Raises ValueError or MsgspecError for what is none.
    """
    try:
        return _decode(line)
    except msgspec.MsgspecError:
        return msgspec.convert(json.loads(line), _Train | _Eval | _Recovery)


def _transposed(values: Sequence[Value]) -> np.ndarray:
    """[m, n] of n numbers or rows of at most m; NaN where there are fewer."""
    try:
        return np.atleast_2d(np.array(values, float).T)
    except ValueError:
        rows = [value if isinstance(value, tuple) else (value,) for value in values]
        return np.array(list(itertools.zip_longest(*rows, fillvalue=math.nan)), float)


class Table:
    """What is drawn of metrics.jsonl, line by line.

    train, eval: the lines of these kinds.  recoveries: (step, factor) of that kind.  last_step: of the last whole line.
    torn: whether the last line was.  unread: how many could not be read.
    """

    def __init__(self) -> None:
        self.train: list[_Train] = []
        self.eval: list[_Eval] = []
        self.recoveries: list[tuple[int, float]] = []
        self.last_step = 0
        self.torn = False
        self.unread = 0

    @property
    def timed(self) -> bool:
        """Whether lines say how long the run had taken."""
        return any(not math.isnan(lines[-1].seconds) for lines in (self.train, self.eval) if lines)

    def add(self, raw: bytes) -> None:
        """The next line of the file, with its end."""
        if not raw.endswith(b"\n"):
            self.torn = True
            return
        try:
            line = _parsed(raw)
        except (ValueError, msgspec.MsgspecError):
            self.unread += 1
            return
        if isinstance(line, _Recovery):
            self.recoveries.append((line.step, line.factor))
            return
        if isinstance(line, _Train):
            if line.task_loss == line.accuracy == 0:  # certain and wrong: no batch had reached the last stage yet
                line.task_loss = line.accuracy = None
            self.train.append(line)
        else:
            self.eval.append(line)
        self.last_step = max(self.last_step, line.step)

    def notes(self) -> list[str]:
        """In words, what was left out."""
        notes = []
        if self.torn:
            notes.append("the last line of metrics.jsonl is torn (being written, or the run was killed): left out")
        if self.unread:
            notes.append(f"{self.unread:,} lines of metrics.jsonl cannot be read: left out")
        if not self.last_step:
            notes.append("no figures yet")
        return notes

    def lines(self, points: int, step_seconds: float | None) -> dict[str, tuple[Line, ...]]:
        """By name, of the figures that there are.  step_seconds: where the lines have no times."""
        made: dict[str, tuple[Line, ...]] = {}
        for lines, kind in ((self.train, _Train), (self.eval, _Eval)):
            step = np.array([line.step for line in lines], int)
            seconds = np.array([line.seconds for line in lines]) if self.timed else step * (step_seconds or math.nan)
            for name in kind.__struct_fields__[2:]:
                column = [getattr(line, name) for line in lines]
                there = [i for i, value in enumerate(column) if value is not None]
                if there:
                    values = _transposed([column[i] for i in there])
                    made[name] = tuple(thinned(step[there], seconds[there], value, points) for value in values)
        return made

    def step_seconds(self) -> float | None:
        """Median over the times between logged steps."""
        step = np.diff([line.step for line in self.train])
        seconds = np.diff([line.seconds for line in self.train])
        known = (step > 0) & np.isfinite(seconds)
        return float(np.median(seconds[known] / step[known])) if known.any() else None

    def data_seconds(self) -> float | None:
        """Median of the logged steps."""
        values = [line.data_seconds for line in self.train if isinstance(line.data_seconds, float)]
        return float(np.median(values)) if values else None


def extremes(value: np.ndarray, points: int) -> np.ndarray:
    """Positions, in order, of at most `points` of the values [n]: the first, the last, and the smallest and the largest
    of each of equal buckets; all of them if there are no more.  NaN counts only in a bucket that has nothing else."""
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


def thinned(step: np.ndarray, seconds: np.ndarray, value: np.ndarray, points: int) -> Line:
    """A line of at most `points` points, see `extremes`."""
    keep = extremes(value, points)
    return Line(step[keep], seconds[keep], value[keep], len(value))
