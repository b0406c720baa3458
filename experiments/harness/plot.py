"""One style for all pictures: SVG whose text is text, the same bytes from the same data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STYLE: dict[Any, Any] = {"svg.hashsalt": "lpjax", "svg.fonttype": "none", "font.size": 9, "hatch.linewidth": 0.6}

BLUE, ORANGE, GREEN, GRAY = "#56B4E9", "#E69F00", "#8FD6BD", "#555555"  # of Okabe and Ito, for colour-blind people, too


@contextmanager
def figure(path: Path, **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure, with options of `matplotlib.pyplot.subplots`, and its axis, which are written to a file at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        made, axis = plt.subplots(layout="constrained", **options)
        yield made, axis
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, metadata={"Date": None})
        plt.close(made)


def patches() -> Any:
    """matplotlib's shapes."""
    from matplotlib import patches

    return patches
