"""The pictures method.svg, a step of layer_parallel on four devices, and schedule.svg, when devices work and wait.

Nothing in the first is measured.  The second is to scale, by a file of `speedup`: the layer-parallel step is its row
`coarse_tail`, as predicted there; passes of backprop and the pipeline have backprop's seconds by their operations.
"""

from functools import partial
from pathlib import Path
from typing import Any

from experiments.harness import plot
from experiments.harness.experiment import Json, Picture
from experiments.harness.rows import images, load
from experiments.speed.prediction import computing, schedule_of, sending
from lpjax.nn.schedule import Message, Work, from_json, place
from lpjax.training import run as runs

STAGES, MICRO_BATCHES = 4, 4
SUBSCRIPT = str.maketrans("0123", "₀₁₂₃")

COLUMNS = (  # of a step: where they are, their titles, and what is below these
    (1.7, "AuxNet on its own examples", "each device a quarter of the batch"),
    (3.7, "all_to_all", "λ: to its stage"),
    (6.3, "all stages at the same time", "a stage has all examples: forward, backward, update"),
    (9.15, "all_to_all", "P, X: home"),
    (11.1, "AuxNet learns λ⁺", "gradients summed over all devices"),
)
BELOW = (
    "Stage k, but the last, minimises  β ψ(λₖ₊₁ - Xₖ) + φ of its coarse tail (hatched): the pieces of the AuxNet "
    "behind it, run on what the stage really made, Xₖ.\n"
    "The last stage minimises φ, the cross entropy.  After training the stages are composed, F₃(F₂(F₁(F₀(x)))), "
    "without AuxNet."
)


def box(axis: Any, x: float, y: float, size: tuple[float, float], color: str, text: str, hatch: str = "") -> None:
    """A box from x on, around y, and its letters, which stand on no hatching."""
    behind = {"fc": "white", "ec": "none", "pad": 1.2} if hatch else None
    look = {"fc": color, "ec": "black", "lw": 0.8, "hatch": hatch}
    axis.add_patch(plot.patches().Rectangle((x, y - size[1] / 2), *size, **look))
    axis.text(x + size[0] / 2, y, text.translate(SUBSCRIPT), ha="center", va="center_baseline", size=9, bbox=behind)


def arrow(axis: Any, x: float, y: float, to_x: float, to_y: float, **style: Any) -> None:
    """An arrow from one point to another."""
    look = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0, "color": "black", "lw": 0.9}
    axis.add_patch(plot.patches().FancyArrowPatch((x, y), (to_x, to_y), **look | style))


def device(axis: Any, k: int, y: float) -> None:
    """The row of device k, at y."""
    letters = partial(axis.text, y=y, va="center")
    axis.add_patch(plot.patches().Rectangle((0.0, y - 0.42), 12.35, 0.84, fc="0.96", ec="0.8", lw=0.8, zorder=0))
    letters(x=-0.1, s=f"device {k}", ha="right", weight="bold")
    letters(x=0.1, s="¼ x", ha="left")
    for j in range(STAGES):  # its examples through the whole AuxNet
        x = 0.7 + 0.62 * j
        arrow(axis, x - (0.2 if j else 0.22), y, x, y)
        box(axis, x, y, (0.42, 0.4), plot.GREEN, f"G{j}")
        if j < STAGES - 1:
            axis.text(x + 0.52, y + 0.25, f"λ{j + 1}".translate(SUBSCRIPT), ha="center", size=8)
    letters(x=4.55, s=(f"λ{k}" if k else "x").translate(SUBSCRIPT), ha="right")
    arrow(axis, 4.6, y, 4.8, y)
    box(axis, 4.8, y, (1.0, 0.56), plot.BLUE, f"stage F{k}")
    end = 5.8
    for j in range(k + 1, STAGES):  # the AuxNet's pieces behind its stage, as a coarse tail
        x = 6.1 + 0.6 * (j - k - 1)
        arrow(axis, end, y, x, y)
        box(axis, x, y, (0.42, 0.34), plot.GREEN, f"G{j}", "////")
        end = x + 0.42
    arrow(axis, end, y, end + 0.2, y)
    letters(x=end + 0.25, s="φ", ha="left")
    box(axis, 9.95, y, (0.85, 0.4), "white", "λ⁺")  # its examples again
    arrow(axis, 10.8, y, 11.0, y)
    box(axis, 11.0, y, (1.2, 0.4), plot.ORANGE, "G: backward")


def draw_method(path: Path) -> None:
    """A step of four stages, from left to right."""
    with plot.figure(path, figsize=(11, 5.2)) as (_, axis):
        rows = [STAGES - 1 - k for k in range(STAGES)]
        for k, y in enumerate(rows):
            device(axis, k, y)
            for to_y, (x, to_x) in ((to_y, pair) for to_y in rows for pair in ((3.1, 4.25), (8.55, 9.75))):
                arrow(axis, x, y, to_x, to_y, color=plot.GRAY, lw=0.6)
        for x, title, below in COLUMNS:
            axis.text(x, 3.78, title, ha="center", va="bottom", weight="bold")
            axis.text(x, 3.56, below, ha="center", va="bottom", size=8)
        axis.text(6.15, -0.62, BELOW, ha="center", va="top")
        axis.set(xlim=(-0.95, 12.45), ylim=(-1.15, 4.1))
        axis.axis("off")


LOOKS: dict[str, dict[str, Any]] = {  # of what a device does
    "forward pass": {"fc": plot.BLUE},
    "backward pass": {"fc": plot.ORANGE},
    "coarse tail": {"fc": plot.GREEN, "hatch": "////"},
    "AuxNet": {"fc": plot.GREEN},
    "exchange": {"fc": plot.GRAY, "ec": plot.GRAY},
    "augmentation, updates": {"fc": "0.75"},
    "waiting": {"fc": "white", "hatch": "...", "ec": "0.8"},
}

Block = tuple[float, float, str, str]  # from, to (seconds), which of `LOOKS`, and what is written on it


def steps(result: Json) -> dict[str, list[list[Block]]]:
    """What each device does in the steps that are drawn, by title, from the JSON of `speedup`."""
    (row,) = [p for p in result["predictions"] if (p["row"], p["stages"]) == ("coarse_tail", STAGES)]
    common = {"num_stages": STAGES, "pipeline.micro_batches": MICRO_BATCHES}
    titles = "serial backprop, on one device", f"pipeline, {MICRO_BATCHES} micro-batches", "layer-parallel"
    each, made = 0.0, {}
    methods = [{"method": name} | common for name in ("serial", "pipeline")] + [row["fields"]]
    for title, fields in zip(titles, methods, strict=True):
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


def draw_schedule(path: Path, result: Json) -> None:
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
            axis.set(ylim=(len(step) - 0.5, -0.5), xlim=(0, 1.08 * max(ends)))
            axis.set(yticks=range(len(step)), yticklabels=[f"device {d}" for d in range(len(step))])
            axis.tick_params(length=0)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[-1].set_xlabel("seconds")
        handles = [plot.patches().Patch(**{"ec": "white", "label": kind, **style}) for kind, style in LOOKS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, handlelength=1.4)


PICTURES: dict[str, Picture] = {"method": (draw_method, ()), "schedule": (draw_schedule, ("speedup",))}
