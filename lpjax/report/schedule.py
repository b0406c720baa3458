"""Who computes what and when in one step: the drawings at the heads of `lpjax.methods` to scale.

From the seconds that `python -m lpjax.balance --workdir=DIR` measured of the parts on one device, or else from their
floating-point operations, a backward pass taken as two forward passes.  Exchanges, optimisers and waits for batch norm
are left out; a device waits where its method makes it.  Rows are devices along 'stage'; those along 'data' do the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lpjax.errors import BadInput

KINDS = ("AuxNet forward", "forward", "coarse tail", "classifier", "backward", "AuxNet backward")


class Part(NamedTuple):
    """Costs of a stage on a stage column's examples.  beside: of both passes of its coarse tail or classifier."""

    forward: float
    backward: float
    beside: float


class Bar(NamedTuple):
    """kind: one of `KINDS`.  what: in words.  device: along 'stage'."""

    device: int
    start: float
    length: float
    kind: str
    what: str


@dataclass(frozen=True)
class Schedule:
    """unit: of starts and lengths, "s" or "GFLOP".  note: where they are from."""

    bars: tuple[Bar, ...]
    unit: str
    note: str

    @property
    def end(self) -> float:
        """When the last device has finished."""
        return max(bar.start + bar.length for bar in self.bars)

    @property
    def busy(self) -> float:
        """Share of the devices' time in which they compute."""
        return sum(bar.length for bar in self.bars) / (self.end * len({bar.device for bar in self.bars}))


class _Rows:
    """Bars under construction.  now: [S], when each device has finished."""

    def __init__(self, devices: int) -> None:
        self.now = [0.0] * devices
        self.bars: list[Bar] = []

    def add(self, device: int, length: float, kind: str, what: str) -> None:
        if length > 0:
            self.bars.append(Bar(device, self.now[device], length, kind, what))
            self.now[device] += length

    def meet(self) -> None:
        """All wait for the last one."""
        self.now = [max(self.now)] * len(self.now)


def make(structure: Mapping[str, Any], measured: Mapping[str, Any] | None) -> Schedule:
    """The schedule of a step of structure.json, from seconds.json where there is one.

    Raises KeyError or TypeError for what is neither, ValueError for a method without a drawing.
    """
    S, column = structure["mesh"][0], structure["examples"]
    if measured:
        unit, note = "s", f"measured on {measured['device']}, each part alone on one device"
        stages = [Part(**part) for part in measured["stages"]]
        aux = [(piece["forward"], piece["backward"]) for piece in measured["aux"]]
    else:
        unit = "GFLOP"
        note = "not measured: lengths are floating-point operations, a backward pass taken as two forward passes"
        scale = column / 1e9
        stages = [
            Part(scale * row["flops"], 2 * scale * row["flops"], 3 * scale * row["beside_flops"])
            for row in structure["stages"]
        ]
        aux = [(scale * row["flops"] / S, 2 * scale * row["flops"] / S) for row in structure["aux"]]
    method = structure["method"]
    if method not in _DRAWINGS:
        raise BadInput(f"method={method!r}: no drawing of its schedule; expected one of {', '.join(_DRAWINGS)}")
    rows = _Rows(S)
    _DRAWINGS[method](rows, stages, aux, structure)
    return Schedule(tuple(rows.bars), unit, note)


def _held(device: int, stages: Sequence[Part], devices: int) -> range:
    """The stages that a device holds."""
    slots = len(stages) // devices
    return range(device * slots, (device + 1) * slots)


def _layer_parallel(rows: _Rows, stages: Sequence[Part], aux: Sequence[tuple[float, float]], _: Any) -> None:
    """AuxNet, then all stages at once, then the AuxNet back."""
    S = len(rows.now)
    for d in range(S):
        for j, (forward, _) in enumerate(aux):
            rows.add(d, forward, "AuxNet forward", f"AuxNet piece {j}, forward")
    for d in range(S):
        for k in _held(d, stages, S):
            rows.add(d, stages[k].forward, "forward", f"stage {k}, forward")
            rows.add(d, stages[k].beside, "coarse tail", f"coarse tail behind stage {k}, forward and backward")
            rows.add(d, stages[k].backward, "backward", f"stage {k}, backward")
    rows.meet()
    for d in range(S):
        for j, (_, backward) in reversed(list(enumerate(aux))):
            rows.add(d, backward, "AuxNet backward", f"AuxNet piece {j}, backward")


def _backprop(rows: _Rows, stages: Sequence[Part], *_: Any) -> None:
    """The whole network on each device, on its share of the examples."""
    S = len(rows.now)
    for d in range(S):
        for k, part in enumerate(stages):
            rows.add(d, part.forward / S, "forward", f"stage {k}, forward")
        for k, part in reversed(list(enumerate(stages))):
            rows.add(d, part.backward / S, "backward", f"stage {k}, backward")


def _pipeline(rows: _Rows, stages: Sequence[Part], _: Any, structure: Mapping[str, Any]) -> None:
    """GPipe, in rounds that all devices share; backward rounds compute the forward passes again."""
    S, M = len(rows.now), structure["micro_batches"]
    forward = [sum(stages[k].forward for k in _held(d, stages, S)) / M for d in range(S)]
    backward = [sum(stages[k].backward for k in _held(d, stages, S)) / M for d in range(S)]
    for number in range(M + S - 2):
        for d in range(S - 1):
            if 0 <= (m := number - d) < M:
                rows.add(d, forward[d], "forward", f"micro-batch {m}, forward")
        rows.meet()
    for number in range(M + S - 1):
        for d in range(S):
            if 0 <= (m := number - (S - 1 - d)) < M:
                rows.add(d, forward[d], "forward", f"micro-batch {m}, forward again")
                rows.add(d, backward[d], "backward", f"micro-batch {m}, backward")
        rows.meet()


def _delayed(rows: _Rows, stages: Sequence[Part], _: Any, structure: Mapping[str, Any]) -> None:
    """FDG: a forward pass of one batch, then both of an older one.  DDG: the forward pass waits for the one before."""
    S, last = len(rows.now), len(stages) - 1
    for d in range(S):
        for k in _held(d, stages, S):
            if k < last:
                rows.add(d, stages[k].forward, "forward", f"stage {k}, forward")
                if structure["variant"] == "ddg":
                    rows.meet()
    for d in range(S):
        for k in _held(d, stages, S):
            again = "" if k == last else " again, of an older batch"
            rows.add(d, stages[k].forward, "forward", f"stage {k}, forward{again}")
            rows.add(d, stages[k].backward, "backward", f"stage {k}, backward")


def _local(rows: _Rows, stages: Sequence[Part], _: Any, structure: Mapping[str, Any]) -> None:
    """Every stage on the loss of its own classifier, or of its coarse tail; the AuxNet's piece learns beside that."""
    S, kind = len(rows.now), "classifier" if structure["method"] == "local" else "coarse tail"
    for d in range(S):
        for k in _held(d, stages, S):
            rows.add(d, stages[k].forward, "forward", f"stage {k}, forward")
            rows.add(d, stages[k].beside, kind, f"{kind} of stage {k}, forward and backward")
            rows.add(d, stages[k].backward, "backward", f"stage {k}, backward")


_DRAWINGS = {
    "layer_parallel": _layer_parallel,
    "serial": _backprop,
    "data_parallel": _backprop,
    "pipeline": _pipeline,
    "delayed": _delayed,
    "local": _local,
    "coarse_adjoint": _local,
}
