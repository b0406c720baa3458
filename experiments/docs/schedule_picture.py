"""The picture schedule.svg: when devices work and when they wait in a step of ResNet-110, to scale.

The methods' schedules, with the seconds of a file of `speedup`.  The layer-parallel step is its row `coarse_tail`,
K = 4, as it is predicted there from parts that were timed alone on one core.  Backprop's step was timed whole; its
passes, and those of the pipeline, whose stages are cut evenly, have its seconds by their operations.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import plot
from experiments.harness.experiment import Json, Picture
from experiments.harness.rows import load
from experiments.speed.prediction import computing, schedule_of, sending
from lpjax.data import SOURCES
from lpjax.nn.schedule import Drawn, Message, Work, from_json, place
from lpjax.training import run as runs

STAGES = 4
MICRO_BATCHES = 4

LOOKS: dict[str, dict[str, Any]] = {
    "forward pass": {"fc": plot.BLUE},
    "backward pass": {"fc": plot.ORANGE},
    "coarse tail": {"fc": plot.GREEN, "hatch": "////"},
    "AuxNet": {"fc": plot.GREEN},
    "exchange": {"fc": plot.GRAY, "ec": plot.GRAY},
    "augmentation, updates": {"fc": "0.75"},
    "waiting": {"fc": "white", "hatch": "...", "ec": "0.8"},
}
"""What a device does, and how that is drawn."""


class Block(NamedTuple):
    """Something that a device does from `start` to `end`, seconds."""

    start: float
    end: float
    kind: str
    label: str


class Step(NamedTuple):
    """What each device does in a step, and when the step ends."""

    devices: list[list[Block]]
    end: float


def steps(result: Json) -> dict[str, Step]:
    """The steps that are drawn, by title, from the JSON of `speedup`."""
    (row,) = [p for p in result["predictions"] if (p["row"], p["stages"]) == ("coarse_tail", STAGES)]
    parts, common = row["parts"], {"num_stages": STAGES, "pipeline.micro_batches": MICRO_BATCHES}
    serial, pipeline, own = (
        schedule(result["config"], fields)
        for fields in ({"method": "serial"} | common, {"method": "pipeline"} | common, row["fields"])
    )
    each = parts["serial"] / sum(entry.flops for entry in from_json(serial["entries"]))
    by_operations = [[entry.flops * each for entry in from_json(made["entries"])] for made in (serial, pipeline)]
    timed = computing(from_json(own["entries"]), parts, own["updated"])
    return {
        "serial backprop, on one device": placed(serial, by_operations[0], result["link"]),
        f"pipeline, {MICRO_BATCHES} micro-batches": placed(pipeline, by_operations[1], result["link"]),
        "layer-parallel": placed(own, timed, result["link"]),
    }


def schedule(path: str, fields: Mapping[str, Any]) -> Json:
    """Of a step of a config file with some fields set, see `prediction.schedule_of`."""
    config = load(path, fields)
    published = SOURCES[config.data.name].published
    assert published is not None, config.data.name
    return schedule_of(runs.build_network(config, published(config.data)), config)


def placed(schedule: Json, computed: list[float], link: Json) -> Step:
    """A step by the seconds of its entries, and of its collectives by the link."""
    rows = from_json(schedule["entries"])
    lengths = [a + b for a, b in zip(computed, sending(schedule["sent"], link), strict=True)]
    spans = place([row.item for row in rows], lengths)
    works = [row.item for row in rows if isinstance(row.item, Work)]
    devices, several = 1 + max(work.device for work in works), any(work.micro for work in works)
    blocks: list[list[Block]] = [[] for _ in range(devices)]
    for row, (start, end) in zip(rows, spans, strict=True):
        kind, label = kind_of(row), label_of(row, several)
        for own in ([blocks[row.item.device]] if isinstance(row.item, Work) else blocks) if end > start else ():
            goes_on = own and (own[-1].end, own[-1].kind, own[-1].label) == (start, kind, label)
            own.append(Block(own.pop().start if goes_on else start, end, kind, label))
    return Step(blocks, max(end for _, end in spans))


def kind_of(row: Drawn) -> str:
    """Which of `LOOKS` an entry has."""
    if row.item.kind in ("stage", "recompute"):
        return "backward pass" if row.label.endswith("backward") else "forward pass"
    if isinstance(row.item, Message) or row.item.kind == "pack":
        return "exchange"
    return {"tail": "coarse tail", "aux": "AuxNet"}.get(row.item.kind, "augmentation, updates")


def label_of(row: Drawn, several: bool) -> str:
    """What is written on an entry: the stage, or the micro-batch where there are several."""
    item = row.item
    if not isinstance(item, Work) or item.kind != "stage" or (several and not item.gradients):
        return ""
    return str(item.micro) if several else f"{'B' if item.gradients else 'F'}{item.stage}"


def draw(path: Path, result: Json) -> None:
    """Steps on one scale of time, a panel each."""
    drawn = steps(result)
    longest, counts = max(step.end for step in drawn.values()), [len(step.devices) for step in drawn.values()]
    shape: dict[str, Any] = {"figsize": (9, 5.4), "sharex": True, "height_ratios": [n + 0.6 for n in counts]}
    with plot.figure(path, rows=len(drawn), **shape) as (figure, axes):
        from matplotlib import patches

        for axis, (name, step) in zip(axes, drawn.items(), strict=True):
            draw_step(axis, step, longest)
            axis.set_title(name, loc="left", weight="bold", size=9)
        axes[-1].set_xlabel("seconds")
        handles = [patches.Patch(**{"ec": "white", "label": kind, **style}) for kind, style in LOOKS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, handlelength=1.4)


def draw_step(axis: Any, step: Step, longest: float) -> None:
    """A row a device, as long as the longest step's."""
    from matplotlib import patches

    for device, blocks in enumerate(step.devices):
        waiting = Block(0, step.end, "waiting", "")  # what is left of it
        for start, end, kind, label in (waiting, *blocks):
            style = {"ec": "white", "lw": 0.5, **LOOKS[kind]}
            axis.add_patch(patches.Rectangle((start, device - 0.38), end - start, 0.76, **style))
            if label:
                axis.text((start + end) / 2, device, label, ha="center", va="center_baseline", size=8)
    axis.axvline(step.end, color="black", lw=1)
    middle = (len(step.devices) - 1) / 2
    axis.text(step.end + 0.01 * longest, middle, f"{step.end:.2f} s", ha="left", va="center", weight="bold")
    names = [f"device {d}" for d in range(len(step.devices))]
    axis.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xlim=(0, 1.08 * longest), yticklabels=names)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


PICTURES = {"schedule": Picture(draw, ("speedup",))}
