"""Who computes what and when in one step, to scale.

From the schedule in structure.json and the seconds that `python -m lpjax.balance --workdir=DIR` measured of its entries
on one device, or else their floating-point operations, a backward pass taken as two forward passes.  Exchanges,
optimisers and waits for batch norm are left out; a device waits where the method makes it.  Rows are devices along
'stage'; those along 'data' do the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lpjax.nn.schedule import Work, from_json, place


class Bar(NamedTuple):
    """Something that a device computes.

    Attributes:
      device: Its position along 'stage'.
      start: In the schedule's unit.
      length: Likewise.
      kind: Such as "stage forward".
      what: In words, for which stage and micro-batch.
    """

    device: int
    start: float
    length: float
    kind: str
    what: str


@dataclass(frozen=True)
class Schedule:
    """A step.

    Attributes:
      bars: What is computed.
      unit: Of starts and lengths, "s" or "GFLOP".
      note: Where they are from.
    """

    bars: tuple[Bar, ...]
    unit: str
    note: str

    @property
    def kinds(self) -> list[str]:
        """Of the bars, in the order in which they first appear."""
        return list(dict.fromkeys(bar.kind for bar in self.bars))

    @property
    def end(self) -> float:
        """When the last device has finished."""
        return max((bar.start + bar.length for bar in self.bars), default=0.0)

    @property
    def busy(self) -> float:
        """Share of the devices' time in which they compute."""
        return sum(bar.length for bar in self.bars) / (self.end * len({bar.device for bar in self.bars}))


def make(phase: Mapping[str, Any], seconds: Sequence[float | int] | None, device: str = "") -> Schedule:
    """The schedule of a step.

    Args:
      phase: Of structure.json.
      seconds: Of the entries of its schedule, from seconds.json, if there is one.
      device: That they were measured on.

    Raises:
      KeyError, TypeError, ValueError: It is not what lpjax writes.
    """
    rows = from_json(phase["schedule"])
    if seconds is not None:
        unit, note = "s", f"measured on {device}, each part alone on one device"
        lengths = list(map(float, seconds))
    else:
        unit = "GFLOP"
        note = "not measured: lengths are floating-point operations, a backward pass taken as two forward passes"
        lengths = [row.flops / 1e9 for row in rows]
    spans = place([row.item for row in rows], lengths)
    bars = [
        Bar(row.item.device, start, end - start, row.label, _words(row.item, row.label))
        for row, (start, end) in zip(rows, spans, strict=True)
        if isinstance(row.item, Work) and end > start
    ]
    return Schedule(tuple(bars), unit, note)


def _words(work: Work, label: str) -> str:
    """Such as "stage 2: stage forward, micro-batch 3"."""
    which = "" if work.stage is None else f"{'piece' if work.kind == 'aux' else 'stage'} {work.stage}: "
    micro = f", micro-batch {work.micro}" if work.micro > 0 else ""
    steps = f", of {-work.micro} micro-batches before" if work.micro < 0 else ""
    return f"{which}{label}{micro}{steps}"
