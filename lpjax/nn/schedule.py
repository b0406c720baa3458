"""The schedule of a training step: what each device computes and sends, and what waits for what.

A method writes its step down once, as a list of `Work` and `Message` (`Method.work`).  The cost model, the memory
estimate, the cuts of `balance`, structure.json and the drawings of a step are all computed from that list.

The list's order is each device's own order.  All devices along 'stage' start a step together, with everything of
earlier steps at hand; devices along 'data' do the same as each other.  What is said of one example is of one stage
column: the examples that share a 'data' index.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast


@dataclass(frozen=True)
class Work:
    """Something that one device computes.

    Attributes:
      device: Its position along 'stage'.
      kind: What it is for: "stage", "tail", "classifier", "aux", "recompute" (a stage's forward pass computed again),
        or, where there is no chain, such as "augment", "pack", "correct", "update", "keep" (room for activations).
      stage: Of which stage it is a part, tails and classifiers too; of "aux" which piece.  None: of neither.
      micro: Which micro-batch; negative where it entered the network in an earlier step.
      chain: The `chain.Chain` that is applied; None for work that only reads and writes memory.
      examples: How many examples it is applied to.
      norm_axes: Mesh axes over which its batch norms are averaged, in one collective a layer and pass.
      gradients: Of "input" and "weights", those that a backward pass finds; empty for a forward pass.
      accesses: Values that work without a chain reads or writes in memory.
      after: Positions in the list of what it waits for, beside what its device did before.
      keeps: Bytes that it allocates, besides the activations of its chain.
      until: Position of the last entry that needs what it keeps; None for the end of the step.  A forward pass keeps
        the activations of its chain only where it says until when.
    """

    device: int
    kind: str
    stage: int | None = None
    micro: int = 0
    chain: Any = None
    examples: int = 0
    norm_axes: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    accesses: int = 0
    after: tuple[int, ...] = ()
    keeps: int = 0
    until: int | None = None

    @property
    def label(self) -> str:
        """Its kind, and for a chain the direction: "stage forward", "stage backward", "update"."""
        if self.chain is None:
            return self.kind
        return f"{self.kind} {'backward' if self.gradients else 'forward'}"


@dataclass(frozen=True)
class Message:
    """A collective that all devices along its axes take part in.

    Attributes:
      collective: "psum" (pmean too), "all_gather", "all_to_all", "reduce_scatter" or "ppermute".
      axes: Mesh axes that it runs over.
      bytes: A device's own input.
      count: Arrays that it is in, each a collective of its own unless the compiler combines them.
      kind: What it is for: "exchange", "gradients" or "metrics".
      after: Positions in the list of what it waits for.
    """

    collective: str
    axes: tuple[str, ...]
    bytes: int
    kind: str
    count: int = 1
    after: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Its kind."""
        return self.kind


Item = Work | Message


class Part(NamedTuple):
    """A chain that is run forward and backward: for which stage, and which gradients are found."""

    stage: int
    chain: Any
    gradients: tuple[str, ...] = ("input", "weights")


class Plan:
    """A schedule while it is written.

    A training step is one program under `shard_map`: a collective waits for everything that came before it, and what
    comes after waits for the collective.  So each entry waits for the last message, and a message for all entries since
    the one before, unless `after` says otherwise.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._last: tuple[int, ...] = ()
        self._since: list[int] = []

    def work(self, device: int, kind: str, **what: Any) -> int:
        """Add a `Work`; returns its position."""
        self._since.append(len(self.items))
        self.items.append(Work(device, kind, **{"after": self._last, **what}))
        return self._since[-1]

    def message(self, collective: str, axes: str | tuple[str, ...], size: int, kind: str, **what: Any) -> int:
        """Add a `Message` of `size` bytes; returns its position."""
        axes = (axes,) if isinstance(axes, str) else axes
        position = len(self.items)
        self.items.append(Message(collective, axes, size, kind, **{"after": (*self._last, *self._since), **what}))
        self._last, self._since = (position,), []
        return position

    def keep(self, position: int, until: int) -> None:
        """What the entry at `position` keeps is needed until another one is done."""
        self.items[position] = replace(cast(Work, self.items[position]), until=until)

    def passes(self, device: int, chains: Iterable[Part], kind: str, again: str = "", **what: Any) -> None:
        """Add forward passes through chains, one after another, and their backward passes in reverse.

        Args:
          device: Position along 'stage'.
          chains: What is applied.
          kind: Of the work.
          again: Kind of the forward passes; "" for the same.
          **what: Other fields of `Work`.
        """
        forward = [(self.work(device, again or kind, stage=p.stage, chain=p.chain, **what), p) for p in chains]
        for position, (stage, chain, gradients) in reversed(forward):
            self.keep(position, self.work(device, kind, stage=stage, chain=chain, gradients=gradients, **what))

    def local(self, device: int, own: Part, behind: Iterable[Part], kind: str, *, keeps: int = 0, **what: Any) -> None:
        """Add a stage's forward pass, both passes of what its local loss needs behind it, and its backward pass.

        Args:
          device: Position along 'stage'.
          own: The stage.
          behind: What is applied to its output.
          kind: Of the work behind it.
          keeps: Bytes that the stage keeps for its backward pass, besides its activations.
          **what: Other fields of `Work`.
        """
        forward = self.work(device, "stage", stage=own.stage, chain=own.chain, keeps=keeps, **what)
        self.passes(device, behind, kind, **what)
        backward = {"stage": own.stage, "chain": own.chain, "gradients": own.gradients}
        self.keep(forward, self.work(device, "stage", **backward, **what))


def place(items: Sequence[Item], seconds: Sequence[float]) -> list[tuple[float, float]]:
    """When each entry of a schedule starts and ends, from how long each takes: the one scheduler.

    Args:
      items: The schedule.
      seconds: [len(items)], of each entry, in any unit of time.

    Returns:
      (start, end) of each entry, in the same unit.
    """
    spans: list[tuple[float, float]] = []
    for before, own in zip(_before(items), seconds, strict=True):
        start = max((spans[i][1] for i in before), default=0.0)
        spans.append((start, start + own))
    return spans


def _before(items: Sequence[Item]) -> Iterator[tuple[int, ...]]:
    """For each entry the positions of what it waits for, what its device did before among them."""
    last: dict[int, int] = {}
    for position, item in enumerate(items):
        if isinstance(item, Message):
            yield item.after
        else:
            yield (*item.after, last[item.device]) if item.device in last else item.after
            last[item.device] = position


def critical(items: Sequence[Item], spans: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the entries that decide how long a step takes, each starting when the one before it ends.

    Args:
      items: The schedule.
      spans: Of its entries, see `place`.
    """
    if not items:
        return []
    before = list(_before(items))
    path = [max(range(len(items)), key=lambda i: spans[i][1])]
    while earlier := before[path[-1]]:
        path.append(max(earlier, key=lambda i: spans[i][1]))
    return path[::-1]


def to_json(items: Sequence[Item], flops: Sequence[float]) -> list[dict[str, Any]]:
    """A schedule in JSON's types, fields at their defaults left out.

    Args:
      items: The schedule.
      flops: [len(items)], floating-point operations of each entry, which stand for its chain.
    """
    rows = []
    for item, own in zip(items, flops, strict=True):
        named = {f.name: (getattr(item, f.name), f.default) for f in fields(item) if f.name != "chain"}
        row = {name: value for name, (value, default) in named.items() if value != default}
        rows.append(row | ({"flops": own, "label": item.label} if own else {}))
    return rows


class Drawn(NamedTuple):
    """An entry that was read from structure.json: without its chain, but with its operations and its label."""

    item: Item
    flops: float
    label: str


def from_json(rows: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """The inverse of `to_json`.

    Raises:
      KeyError, TypeError: Rows that are no schedule.
    """
    drawn = []
    for row in rows:
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.items()
        }
        flops, label = known.pop("flops", 0.0), known.pop("label", None)
        item: Item = Message(**known) if "collective" in known else Work(**known)
        drawn.append(Drawn(item, flops, label or item.label))
    return drawn
