"""The picture schedule.svg: when devices work and when they wait in a step of ResNet-110, to scale.

The methods' schedules, with the seconds of a file of `speedup`.  The layer-parallel step is its row `coarse_tail`, as it
is predicted there from parts that were timed alone.  Backprop's step was timed whole; its passes, and those of the
pipeline, whose stages are cut evenly, have its seconds by their operations.
"""

from pathlib import Path
from typing import Any

from experiments.harness import plot
from experiments.harness.experiment import Json, Picture
from experiments.harness.rows import images, load
from experiments.speed.prediction import computing, schedule_of, sending
from lpjax.nn.schedule import Message, Work, from_json, place
from lpjax.training import run as runs

STAGES, MICRO_BATCHES = 4, 4

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

Block = tuple[float, float, str, str]
"""Something that a device does: from, to (seconds), which of `LOOKS`, and what is written on it."""


def steps(result: Json) -> dict[str, list[list[Block]]]:
    """What each device does in the steps that are drawn, by title, from the JSON of `speedup`."""
    (row,) = [p for p in result["predictions"] if (p["row"], p["stages"]) == ("coarse_tail", STAGES)]
    common = {"num_stages": STAGES, "pipeline.micro_batches": MICRO_BATCHES}
    titles = "serial backprop, on one device", f"pipeline, {MICRO_BATCHES} micro-batches", "layer-parallel"
    each, made = 0.0, {}
    for title, fields in zip(
        titles, [{"method": m} | common for m in ("serial", "pipeline")] + [row["fields"]], strict=True
    ):
        config = load(result["config"], {**fields, "dry_run": True})
        schedule = schedule_of(runs.build_network(config, images(config.data)), config)
        entries = from_json(schedule["entries"])
        each = each or row["parts"]["serial"] / sum(entry.flops for entry in entries)
        seconds = [entry.flops * each for entry in entries]
        if title == titles[-1]:
            seconds = computing(entries, row["parts"], schedule["updated"])
        made[title] = placed(schedule, seconds, result["link"])
    return made


def placed(schedule: Json, computed: list[float], link: Json) -> list[list[Block]]:
    """What each device does, by the seconds of a schedule's entries, and of its collectives by the link."""
    rows = from_json(schedule["entries"])
    lengths = [a + b for a, b in zip(computed, sending(schedule["sent"], link), strict=True)]
    works = [row.item for row in rows if isinstance(row.item, Work)]
    several = any(work.micro for work in works)
    blocks: list[list[Block]] = [[] for _ in range(1 + max(work.device for work in works))]
    for row, (start, end) in zip(rows, place([row.item for row in rows], lengths), strict=True):
        item, text = row.item, ""
        kind = {"tail": "coarse tail", "aux": "AuxNet", "pack": "exchange"}.get(item.kind, "augmentation, updates")
        if isinstance(item, Message):
            kind = "exchange"
        elif item.kind in ("stage", "recompute"):
            kind = "backward pass" if row.label.endswith("backward") else "forward pass"
            if item.kind == "stage" and not (several and not item.gradients):
                text = str(item.micro) if several else f"{'B' if item.gradients else 'F'}{item.stage}"
        for own in ([blocks[item.device]] if isinstance(item, Work) else blocks) if end > start else ():
            goes_on = own and own[-1][1:] == (start, kind, text)
            own.append((own.pop()[0] if goes_on else start, end, kind, text))
    return blocks


def draw(path: Path, result: Json) -> None:
    """Steps on one scale of time, a panel each, a row a device; what is left of it is waiting."""
    drawn = steps(result)
    ends = [max(end for blocks in step for _, end, *_ in blocks) for step in drawn.values()]
    shape: dict[str, Any] = {"figsize": (9, 5.4), "sharex": True, "nrows": len(drawn)}
    shape["height_ratios"] = [len(step) + 0.6 for step in drawn.values()]
    with plot.figure(path, **shape) as (figure, axes):
        for axis, (name, step), last in zip(axes, drawn.items(), ends, strict=True):
            for device, blocks in enumerate(step):
                for start, end, kind, text in ((0.0, last, "waiting", ""), *blocks):
                    style = {"ec": "white", "lw": 0.5, **LOOKS[kind]}
                    axis.add_patch(plot.patches().Rectangle((start, device - 0.38), end - start, 0.76, **style))
                    axis.text((start + end) / 2, device, text, ha="center", va="center_baseline", size=8)
            axis.axvline(last, color="black", lw=1)
            axis.text(last + 0.01 * max(ends), (len(step) - 1) / 2, f"{last:.2f} s", va="center", weight="bold")
            axis.set_title(name, loc="left", weight="bold", size=9)
            names = [f"device {d}" for d in range(len(step))]
            axis.set(
                ylim=(len(step) - 0.5, -0.5), xlim=(0, 1.08 * max(ends)), yticks=range(len(step)), yticklabels=names
            )
            axis.tick_params(length=0)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[-1].set_xlabel("seconds")
        handles = [plot.patches().Patch(**{"ec": "white", "label": kind, **style}) for kind, style in LOOKS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, handlelength=1.4)


PICTURES: dict[str, Picture] = {"schedule": (draw, ("speedup",))}
