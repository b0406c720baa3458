"""README's drawings: docs/figures/method.svg, a step of the method, and docs/figures/schedule.svg, when devices work.

    python -m experiments.draw_method [--speedup=experiments/results/speedup.json] [--folder=docs/figures]

The first is a drawing, nothing in it is measured.  The second is to scale: schedules of the methods with seconds of a
file of `experiments.speedup`.  The layer-parallel step is its row `coarse_tail`, K = 4, as it is predicted there from
parts that were timed alone on one core.  Backprop's step was timed whole; its passes, and those of the pipeline, whose
stages are cut evenly, have its seconds by their operations.  Some seconds.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.compare import load
from experiments.step_prediction import Json, computing, schedule_of, sending
from lpjax.data import SOURCES
from lpjax.nn.schedule import Drawn, Message, Work, from_json, place
from lpjax.training import run as runs

STAGES = 4
MICRO_BATCHES = 4

FORWARD, BACKWARD, AUX_NET, EXCHANGE = "#56B4E9", "#E69F00", "#8FD6BD", "#555555"
"""Okabe and Ito's colours (the third one lighter), which colour-blind people can tell apart; letters say it too."""

STYLE: dict[Any, Any] = {"svg.hashsalt": "lpjax", "svg.fonttype": "none", "font.size": 9, "hatch.linewidth": 0.6}

LOOKS: dict[str, dict[str, Any]] = {
    "forward pass": {"fc": FORWARD},
    "backward pass": {"fc": BACKWARD},
    "coarse tail": {"fc": AUX_NET, "hatch": "////"},
    "AuxNet": {"fc": AUX_NET},
    "exchange": {"fc": EXCHANGE, "ec": EXCHANGE},
    "augmentation, updates": {"fc": "0.75"},
    "waiting": {"fc": "white", "hatch": "...", "ec": "0.8"},
}
"""What a device does, and how that is drawn."""


# ------------------------------------------------------------------------------------------------------------ schedules


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
    """The steps that are drawn, by title, from the JSON of `experiments.speedup`."""
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
    """Of a step of a config file with some fields set, see `step_prediction.schedule_of`."""
    config = load(Path(path), {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
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


def draw_schedule(drawn: Mapping[str, Step], path: Path) -> None:
    """Steps on one scale of time, a panel each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import patches
    from matplotlib import pyplot as plt

    longest, counts = max(step.end for step in drawn.values()), [len(step.devices) for step in drawn.values()]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(drawn), 1, figsize=(9, 5.4), sharex=True, layout="constrained", height_ratios=[n + 0.6 for n in counts]
        )
        for axis, (name, step) in zip(axes, drawn.items(), strict=True):
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
            axis.set_title(name, loc="left", weight="bold", size=9)
            names = [f"device {d}" for d in range(len(step.devices))]
            axis.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xlim=(0, 1.08 * longest))
            axis.set_yticklabels(names)
            axis.tick_params(length=0)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[-1].set_xlabel("seconds")
        handles = [patches.Patch(**{"ec": "white", "label": kind, **style}) for kind, style in LOOKS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, handlelength=1.4)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


# --------------------------------------------------------------------------------------------------------------- method

SUBSCRIPT = str.maketrans("0123", "₀₁₂₃")


def draw_method(path: Path) -> None:
    """A step of four stages on four devices, from left to right."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import patches
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(11, 5.2), layout="constrained")

        def box(x: float, y: float, width: float, height: float, color: str, text: str, **style: Any) -> None:
            axis.add_patch(patches.Rectangle((x, y - height / 2), width, height, fc=color, ec="black", lw=0.8, **style))
            behind = {"fc": "white", "ec": "none", "pad": 1.2} if "hatch" in style else None  # letters on no hatching
            axis.text(x + width / 2, y, text, ha="center", va="center_baseline", size=9, bbox=behind)

        def arrow(x: float, y: float, to_x: float, to_y: float, color: str = "black", width: float = 0.9) -> None:
            style: dict[str, Any] = {
                "arrowstyle": "-|>",
                "mutation_scale": 8,
                "lw": width,
                "color": color,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            axis.add_patch(patches.FancyArrowPatch((x, y), (to_x, to_y), **style))

        rows = [STAGES - 1 - k for k in range(STAGES)]
        for k, y in enumerate(rows):
            axis.add_patch(patches.Rectangle((0.0, y - 0.42), 12.35, 0.84, fc="0.96", ec="0.8", lw=0.8, zorder=0))
            axis.text(-0.1, y, f"device {k}", ha="right", va="center", weight="bold")
            # 1, 2: its examples through the whole AuxNet
            axis.text(0.1, y, "¼ x", ha="left", va="center")
            arrow(0.48, y, 0.68, y)
            for j in range(STAGES):
                box(0.7 + 0.62 * j, y, 0.42, 0.4, AUX_NET, f"G{j}".translate(SUBSCRIPT))
                if j < STAGES - 1:
                    arrow(0.7 + 0.62 * j + 0.42, y, 0.7 + 0.62 * (j + 1), y)
                    axis.text(0.7 + 0.62 * j + 0.52, y + 0.25, f"λ{j + 1}".translate(SUBSCRIPT), ha="center", size=8)
            # 4: its stage, and the AuxNet's pieces behind it as a coarse tail
            axis.text(4.55, y, (f"λ{k}" if k else "x").translate(SUBSCRIPT), ha="right", va="center")
            arrow(4.6, y, 4.8, y)
            box(4.8, y, 1.0, 0.56, FORWARD, f"stage F{k}".translate(SUBSCRIPT))
            tail = range(k + 1, STAGES)
            for place, j in enumerate(tail):
                x = 6.1 + 0.6 * place
                arrow(x - (0.3 if place == 0 else 0.18), y, x, y)
                box(x, y, 0.42, 0.34, AUX_NET, f"G{j}".translate(SUBSCRIPT), hatch="////")
            end = 5.8 if not tail else 6.1 + 0.6 * len(tail) - 0.18
            arrow(end, y, end + 0.2, y)
            axis.text(end + 0.25, y, "φ", ha="left", va="center")
            # 7: its examples again
            box(9.95, y, 0.85, 0.4, "white", "λ⁺")
            arrow(10.8, y, 11.0, y)
            box(11.0, y, 1.2, 0.4, BACKWARD, "G: backward")
        for x, to_x in ((3.1, 4.25), (8.55, 9.75)):  # 3, 6
            for y in rows:
                for to_y in rows:
                    arrow(x, y, to_x, to_y, EXCHANGE, 0.6)
        for x, title, below in (
            (1.7, "AuxNet on its own examples", "each device a quarter of the batch"),
            (3.7, "all_to_all", "λ: to its stage"),
            (6.3, "all stages at the same time", "a stage has all examples: forward, backward, update"),
            (9.15, "all_to_all", "P, X: home"),
            (11.1, "AuxNet learns λ⁺", "gradients summed over all devices"),
        ):
            axis.text(x, 3.78, title, ha="center", va="bottom", weight="bold")
            axis.text(x, 3.56, below, ha="center", va="bottom", size=8)
        axis.text(
            6.15,
            -0.62,
            "Stage k, but the last, minimises  β ψ(λₖ₊₁ - Xₖ) + φ of its coarse tail (hatched): the pieces of the "
            "AuxNet behind it, run on what the stage really made, Xₖ.\nThe last stage minimises φ, the cross entropy.  "
            "After training the stages are composed, F₃(F₂(F₁(F₀(x)))), without AuxNet.",
            ha="center",
            va="top",
        )
        axis.set(xlim=(-0.95, 12.45), ylim=(-1.15, 4.1))
        axis.axis("off")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--speedup", type=Path, default=Path("experiments/results/speedup.json"))
    parser.add_argument("--folder", type=Path, default=Path("docs/figures"))
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    draw_method(args.folder / "method.svg")
    draw_schedule(steps(json.loads(args.speedup.read_text())), args.folder / "schedule.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
