"""What a chart is, and how charts look, by plotly.

One run: a colour, a dash and a marker for each of its lines.  Several: a colour and a marker for each run, a dash for
each of its lines.  So no line is told from another one by colour alone; bars have patterns.
"""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

COLOURS = ("#0077bb", "#d9622b", "#009988", "#cc3311", "#ee3377", "#7a5cc0", "#808080")
"""Paul Tol's "vibrant" scheme for all kinds of colour vision; orange darkened and cyan replaced, so that each has a
contrast of 3 to the light and to the dark background."""
MARKERS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "x": "✖", "star": "★"}
MARKERS |= {"triangle-down": "▼", "pentagon": "⬟", "hexagon": "⬢"}
MARKERS |= {"circle-open": "○", "square-open": "□", "diamond-open": "◇", "triangle-up-open": "△", "star-open": "☆"}
MARKERS |= {"triangle-down-open": "▽", "pentagon-open": "⬠", "hexagon-open": "⬡"}
MARKERS |= {"triangle-left": "◀", "triangle-right": "▶"}
"""plotly's names, and the same in text."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", "\\", "|", "-", "+", "x", ".")


@dataclass(frozen=True)
class Chart:
    """A chart of the page, with its words.

    Attributes:
      key: Its name in the page.
      title: Above it.
      text: Paragraphs below it.
      figure: By plotly; None where there is nothing to draw.
      axes: Those whose scale can be switched.
    """

    key: str
    title: str
    text: tuple[str, ...]
    figure: go.Figure | None
    axes: tuple[str, ...] = ()


def colour(index: int) -> str:
    """The colour of run, line or piece number `index`."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of run or line number `index`."""
    return list(MARKERS)[index % len(MARKERS)]


def scale(log: bool) -> dict[str, Any]:
    """The scale of an axis, and its ticks."""
    return {"type": "log" if log else "linear", "nticks": 3 if log else 8, "tickformat": "~g"}


def layout(height: int, legend: bool = True) -> dict[str, Any]:
    """The layout that all charts start from; colours come from the page, see page.js.

    Args:
      height: In pixels.
      legend: Whether there is one.
    """
    below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    return {
        "height": height,
        "margin": dict.fromkeys("lrtb", 10),
        "showlegend": legend,
        "legend": {**below, "traceorder": "normal", "maxheight": 120},
        "xaxis": {"automargin": True},
        "yaxis": {"automargin": True},
        "template": None,
    }
