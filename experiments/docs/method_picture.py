"""The picture method.svg: a step of four stages on four devices, from left to right.  Nothing in it is measured."""

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


class Drawing:
    """Boxes, arrows and letters on an axis."""

    def __init__(self, axis: Any) -> None:
        """On an axis of matplotlib."""
        from matplotlib import patches

        self.axis, self.patches = axis, patches

    def box(self, x: float, y: float, width: float, height: float, color: str, text: str, **style: Any) -> None:
        """From x on, around y."""
        frame = self.patches.Rectangle((x, y - height / 2), width, height, fc=color, ec="black", lw=0.8, **style)
        self.axis.add_patch(frame)
        behind = {"fc": "white", "ec": "none", "pad": 1.2} if "hatch" in style else None  # letters on no hatching
        self.axis.text(x + width / 2, y, text, ha="center", va="center_baseline", size=9, bbox=behind)

    def arrow(self, x: float, y: float, to_x: float, to_y: float, color: str = "black", width: float = 0.9) -> None:
        """From one point to another."""
        style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
        self.axis.add_patch(self.patches.FancyArrowPatch((x, y), (to_x, to_y), color=color, lw=width, **style))

    def device(self, k: int, y: float) -> None:
        """The row of device k, at y."""
        axis = self.axis
        background = self.patches.Rectangle((0.0, y - 0.42), 12.35, 0.84, fc="0.96", ec="0.8", lw=0.8, zorder=0)
        axis.add_patch(background)
        axis.text(-0.1, y, f"device {k}", ha="right", va="center", weight="bold")
        # its examples through the whole AuxNet
        axis.text(0.1, y, "¼ x", ha="left", va="center")
        self.arrow(0.48, y, 0.68, y)
        for j in range(STAGES):
            self.box(0.7 + 0.62 * j, y, 0.42, 0.4, plot.GREEN, f"G{j}".translate(SUBSCRIPT))
            if j < STAGES - 1:
                self.arrow(0.7 + 0.62 * j + 0.42, y, 0.7 + 0.62 * (j + 1), y)
                axis.text(0.7 + 0.62 * j + 0.52, y + 0.25, f"λ{j + 1}".translate(SUBSCRIPT), ha="center", size=8)
        # its stage, and the AuxNet's pieces behind it as a coarse tail
        axis.text(4.55, y, (f"λ{k}" if k else "x").translate(SUBSCRIPT), ha="right", va="center")
        self.arrow(4.6, y, 4.8, y)
        self.box(4.8, y, 1.0, 0.56, plot.BLUE, f"stage F{k}".translate(SUBSCRIPT))
        tail = range(k + 1, STAGES)
        for place, j in enumerate(tail):
            x = 6.1 + 0.6 * place
            self.arrow(x - (0.3 if place == 0 else 0.18), y, x, y)
            self.box(x, y, 0.42, 0.34, plot.GREEN, f"G{j}".translate(SUBSCRIPT), hatch="////")
        end = 5.8 if not tail else 6.1 + 0.6 * len(tail) - 0.18
        self.arrow(end, y, end + 0.2, y)
        axis.text(end + 0.25, y, "φ", ha="left", va="center")
        # its examples again
        self.box(9.95, y, 0.85, 0.4, "white", "λ⁺")
        self.arrow(10.8, y, 11.0, y)
        self.box(11.0, y, 1.2, 0.4, plot.ORANGE, "G: backward")


def draw(path: Path) -> None:
    """The picture."""
    with plot.figure(path, figsize=(11, 5.2)) as (_, (axis,)):
        drawing, rows = Drawing(axis), [STAGES - 1 - k for k in range(STAGES)]
        for k, y in enumerate(rows):
            drawing.device(k, y)
        for x, to_x in ((3.1, 4.25), (8.55, 9.75)):
            for y in rows:
                for to_y in rows:
                    drawing.arrow(x, y, to_x, to_y, plot.GRAY, 0.6)
        for x, title, below in COLUMNS:
            axis.text(x, 3.78, title, ha="center", va="bottom", weight="bold")
            axis.text(x, 3.56, below, ha="center", va="bottom", size=8)
        axis.text(6.15, -0.62, BELOW, ha="center", va="top")
        axis.set(xlim=(-0.95, 12.45), ylim=(-1.15, 4.1))
        axis.axis("off")


PICTURES = {"method": Picture(draw)}
