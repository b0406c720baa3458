"""The picture method.svg: a step of four stages on four devices, from left to right.  Nothing in it is measured."""

from functools import partial
from pathlib import Path
from typing import Any

from experiments.harness import plot
from experiments.harness.experiment import Picture

STAGES = 4
SUBSCRIPT = str.maketrans("0123", "₀₁₂₃")

COLUMNS = (
    (1.7, "AuxNet on its own examples", "each device a quarter of the batch"),
    (3.7, "all_to_all", "λ: to its stage"),
    (6.3, "all stages at the same time", "a stage has all examples: forward, backward, update"),
    (9.15, "all_to_all", "P, X: home"),
    (11.1, "AuxNet learns λ⁺", "gradients summed over all devices"),
)
"""Where the parts of a step are, their titles, and what is below these."""

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


def draw(path: Path) -> None:
    """The picture."""
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


PICTURES: dict[str, Picture] = {"method": (draw, ())}
