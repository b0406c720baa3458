"""README's drawings: docs/figures/method.svg, a step of the method, and docs/figures/schedule.svg, when devices work.

    python -m experiments.draw_method [--speedup=experiments/results/speedup.json] [--folder=docs/figures]

The first is a drawing, nothing in it is measured.  The second is to scale: lengths are the terms of the row
`coarse_tail`, K = 4, of `experiments.speedup`, each a part of a step timed alone on one core.  It has no pipeline: that
one is drawn by the formula of `lpjax.cost.model` from the same passes, cut evenly.  A few seconds.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

STAGES = 4
MICRO_BATCHES = 4

FORWARD, BACKWARD, AUX_NET, EXCHANGE = "#56B4E9", "#E69F00", "#8FD6BD", "#555555"
"""Okabe and Ito's colours (the third one lighter), which colour-blind people can tell apart; letters say it too."""

STYLE: dict[Any, Any] = {"svg.hashsalt": "lpjax", "svg.fonttype": "none", "font.size": 9, "hatch.linewidth": 0.6}


class Block(NamedTuple):
    """Something a device does, from `start` for so many `seconds`."""

    device: int
    start: float
    seconds: float
    color: str
    label: str = ""


# ------------------------------------------------------------------------------------------------------------ schedules


class Times(NamedTuple):
    """Seconds of a step's parts.

    forward, backward: of the whole network and batch on one device.  stages, stages_forward: [K], layer-parallel, the
    first with backward pass and coarse tail.  aux_forward, aux_backward: of the AuxNet on a device's examples, with
    augmentation and with correction and optimiser.  exchange: one of the two, with packing.
    """

    forward: float
    backward: float
    stages: list[float]
    stages_forward: list[float]
    aux_forward: float
    aux_backward: float
    exchange: float


def times(result: dict[str, Any]) -> Times:
    """From the JSON of `experiments.speedup`."""
    (row,) = [p for p in result["predictions"] if (p["row"], p["stages"]) == ("coarse_tail", STAGES)]
    parts, terms = row["parts"], row["terms"]
    forward = sum(parts["stages_forward"])
    return Times(
        forward=forward,
        backward=row["rho"] * row["seconds"] - forward,  # serial backprop, less that
        stages=parts["stages"],
        stages_forward=parts["stages_forward"],
        aux_forward=parts["data"] + parts["aux_forward"],
        aux_backward=terms["aux_net"] - parts["aux_forward"] + terms["correction"] + terms["optimizer"],
        exchange=(terms["packing"] + terms["exchange"]) / 2,
    )


def serial(t: Times) -> list[Block]:
    """Backprop through even stages, each on its device: one works, the others wait."""
    f, b = t.forward / STAGES, t.backward / STAGES
    blocks = [Block(k, k * f, f, FORWARD, f"F{k}") for k in range(STAGES)]
    turns = enumerate(reversed(range(STAGES)))
    return blocks + [Block(k, t.forward + turn * b, b, BACKWARD, f"B{k}") for turn, k in turns]


def pipeline(t: Times) -> list[Block]:
    """GPipe as `lpjax.methods.pipeline` runs it; a backward round computes its forward pass again."""
    S, M = STAGES, MICRO_BATCHES
    f = t.forward / (S * M)
    b = (t.forward + t.backward) / (S * M)
    blocks = [Block(k, (k + m) * f, f, FORWARD) for k in range(S - 1) for m in range(M)]
    start = (M + S - 2) * f
    return blocks + [Block(k, start + (S - 1 - k + m) * b, b, BACKWARD, f"{m}") for k in range(S) for m in range(M)]


def layer_parallel(t: Times) -> list[Block]:
    """The step of `lpjax.methods.layer_parallel.step`."""
    blocks = []
    stages = t.aux_forward + t.exchange
    home = stages + max(t.stages)
    for k in range(STAGES):
        blocks += [
            Block(k, 0.0, t.aux_forward, AUX_NET),
            Block(k, t.aux_forward, t.exchange, EXCHANGE),
            Block(k, stages, t.stages_forward[k], FORWARD, f"F{k}"),
            Block(k, stages + t.stages_forward[k], t.stages[k] - t.stages_forward[k], BACKWARD, f"B{k}"),
            Block(k, home, t.exchange, EXCHANGE),
            Block(k, home + t.exchange, t.aux_backward, AUX_NET),
        ]
    return blocks


def length(blocks: list[Block]) -> float:
    """Seconds of the step."""
    return max(block.start + block.seconds for block in blocks)


def draw_schedule(t: Times, path: Path) -> None:
    """One step over four devices: serial, pipeline, layer-parallel, on one scale of time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import patches
    from matplotlib import pyplot as plt

    rows = {
        "serial backprop": serial(t),
        f"pipeline, {MICRO_BATCHES} micro-batches": pipeline(t),
        "layer-parallel": layer_parallel(t),
    }
    longest = max(map(length, rows.values()))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), 1, figsize=(9, 5.4), sharex=True, layout="constrained")
        for axis, (name, blocks) in zip(axes, rows.items(), strict=True):
            end = length(blocks)
            for k in range(STAGES):  # what is left of it is waiting
                axis.add_patch(patches.Rectangle((0, k - 0.38), end, 0.76, fc="white", ec="0.8", hatch="...", lw=0.5))
            for block in blocks:
                box = (block.start, block.device - 0.38), block.seconds, 0.76
                axis.add_patch(patches.Rectangle(*box, fc=block.color, ec="white", lw=0.8))
                if block.label:
                    x = block.start + block.seconds / 2
                    axis.text(x, block.device, block.label, ha="center", va="center_baseline", size=8)
            axis.axvline(end, color="black", lw=1)
            axis.text(end + 0.01 * longest, 1.5, f"{end:.2f} s", ha="left", va="center", weight="bold")
            axis.set_title(name, loc="left", weight="bold", size=9)
            axis.set(ylim=(STAGES - 0.5, -0.5), yticks=range(STAGES), xlim=(0, 1.08 * longest))
            axis.set_yticklabels([f"device {k}" for k in range(STAGES)])
            axis.tick_params(length=0)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[-1].set_xlabel("seconds")
        kinds: dict[str, dict[str, Any]] = {
            "forward pass": {"fc": FORWARD},
            "backward pass (with coarse tail, or with forward pass again)": {"fc": BACKWARD},
            "AuxNet": {"fc": AUX_NET},
            "exchange": {"fc": EXCHANGE},
            "waiting": {"fc": "white", "hatch": "...", "ec": "0.8"},
        }
        handles = [patches.Patch(**{"ec": "white", "label": name, **style}) for name, style in kinds.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, handlelength=1.4)
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
    draw_schedule(times(json.loads(args.speedup.read_text())), args.folder / "schedule.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
