"""What a step should take: its method's schedule, with the seconds of its parts (`speed.parts`) put on the entries."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle
from statistics import mean
from typing import Any

from lpjax.config.schema import Config
from lpjax.cost.traffic import scheduled, total_bytes
from lpjax.methods import METHODS
from lpjax.methods.base import stage_values
from lpjax.network.network import Network
from lpjax.nn.schedule import Drawn, Item, Message, Work, critical, from_json, place, to_json
from lpjax.state import optim
from lpjax.training.summary import item_flops

Json = dict[str, Any]

PARTS = {"augment": ("data",), "pack": ("send", "receive"), "correct": ("correction",)}
PARTS["update"] = ("optimizer", "aux_optimizer")
"""Of work without a chain by kind; where a device does it again they take turns."""


def schedule_of(network: Network, config: Config) -> Json:
    """The schedule of a step: entries; sent, of each the number of its collectives, batch norm's too, and the bytes
    that a device sends in them; updated, accesses in the update of a device's stages alone."""
    items = METHODS[config.method].work(network, config)
    sizes = dict(zip(("stage", "data"), config.mesh_shape, strict=True))

    def sent(item: Item) -> list[float]:
        traffic, together = scheduled([item], sizes), item.count if isinstance(item, Message) else 2  # mean, variance
        return [sum(own.number for own in traffic.values()) // together, total_bytes(traffic)]

    told = {"entries": to_json(items, list(map(item_flops, items))), "sent": list(map(sent, items))}
    return told | {"updated": optim.accesses(config.optimizer) * stage_values(network, config)}


def computing(rows: Sequence[Drawn], parts: Json, updated: int) -> list[float]:
    """Seconds of each entry of a schedule, but for its collectives, from those of the parts by name (of stages lists).

    A program is split over its entries in proportion to their operations: a stage's over all that is done for it;
    `aux_forward` over the AuxNet's pieces; what `aux_all` takes beyond that and the correction over their passes behind
    the correction.  An update takes as much longer than that of `schedule_of` as it has more accesses.
    """
    measured = dict.fromkeys(chain(*PARTS.values()), 0.0) | parts
    measured |= {f"stage {k}": own for k, own in enumerate(parts["stages"])}
    if "aux_all" in parts:
        measured["fit"] = parts["aux_all"] - parts["aux_forward"] - parts["correction"]
    programs = _programs(rows)
    whole: dict[tuple[int, str], dict[Any, float]] = defaultdict(dict)
    for i, (device, name, entry) in programs.items():
        whole[device, name][entry] = updated if name == "optimizer" else _weight(rows[i])
    seconds = [0.0] * len(rows)
    for i, (device, name, _) in programs.items():
        seconds[i] = measured[name] * _weight(rows[i]) / sum(whole[device, name].values())
    return seconds


def _weight(row: Drawn) -> float:
    """Operations of an entry, or accesses of one without a chain."""
    return row.flops or getattr(row.item, "accesses", 0)


def _programs(rows: Sequence[Drawn]) -> dict[int, tuple[int, str, Any]]:
    """By position the program that an entry was timed in, as device and name, and which of its entries it is.

    What is the same entry of a program takes as long each time: the forward passes of a sweep, of a stale exchange, all
    passes of micro-batches.
    """
    works = {i: row.item for i, row in enumerate(rows) if isinstance(row.item, Work) and _weight(row)}
    corrected = {work.device: i for i, work in works.items() if work.kind == "correct"}
    turns: dict[tuple[int, str], Iterator[str]] = {}
    found: dict[int, tuple[int, str, Any]] = {}
    for i, work in works.items():
        entry: Any = (work.stage, rows[i].label)
        behind = i > corrected.get(work.device, len(rows))
        if work.kind == "aux":
            name, entry = ("fit", i) if behind else ("aux_forward", entry)
        elif work.stage is not None:
            name, entry = f"stage {work.stage}", entry if work.kind in ("stage", "recompute") else i
        elif behind:
            continue  # the AuxNet's update is in `aux_all`
        else:
            name = next(turns.setdefault((work.device, work.kind), cycle(PARTS[work.kind])))
        found[i] = work.device, name, entry
    return found


def sending(sent: Sequence[Sequence[float]], link: Json | None) -> list[float]:
    """Seconds of the collectives of each entry; none without a link, where there is one device."""
    return [link["latency"] * number + size / link["bandwidth"] if link else 0.0 for number, size in sent]


def eq27(parts: Json, terms: Mapping[str, float], num_stages: int) -> tuple[float, float]:
    """rho(K) by Eq. 27 of the paper, and its bound."""
    own, data = parts["serial"], parts["serial_data"]
    waited = data + parts["serial_aux_all"] + sum(terms.get(label, 0.0) for label in ("pack", "exchange", "update"))
    return own / (waited + (own - data) / num_stages), own / waited


def prediction(schedule: Json, parts: Json, link: Json | None) -> Json:
    """rho of a row by `schedule_of`, and by Eq. 27 where the method has an AuxNet as the paper's.

    Args:
      schedule: See `schedule_of`.
      parts: Seconds of the parts, see `computing`; those named serial.. are of the whole batch on one device.
      link: Seconds of a collective (latency), and bytes a second that a device sends (bandwidth).
    """
    rows = from_json(schedule["entries"])
    items = [row.item for row in rows]
    computed = computing(rows, parts, schedule["updated"])
    sent = sending(schedule["sent"], link)
    spans = place(items, [a + b for a, b in zip(computed, sent, strict=True)])
    terms: dict[str, float] = defaultdict(float)
    stage = 0.0
    for position in critical(items, spans):
        item, label = items[position], rows[position].label
        terms[label] += computed[position]
        terms[label if isinstance(item, Message) else "batch norm"] += sent[position]
        if isinstance(item, Work) and item.stage is not None and item.kind != "aux":
            stage += computed[position]
    total = sum(terms.values())
    rho27, bound = eq27(parts, terms, len(parts["stages"])) if "serial_aux_all" in parts else (None, None)
    told: Json = {"terms": {label: seconds for label, seconds in terms.items() if seconds}, "seconds": total}
    told |= {"rho": parts["serial"] / total, "rho_eq27": rho27, "bound_eq27": bound, "not_stage": 1 - stage / total}
    return told | {"imbalance": max(parts["stages"]) / mean(parts["stages"]) - 1}
