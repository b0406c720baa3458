"""The table and the figure of a file of `experiments.speedup`."""

from pathlib import Path
from typing import Any

Json = dict[str, Any]


def markdown(result: Json) -> str:
    """The tables of the README."""
    heading = ("K", "method", "s/step", "rho, measured", "predicted", "contended", "Eq. 27", "not stages", "imbalance")
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    predictions = {(p["row"], p["stages"]): p for p in result["predictions"]}
    measured = {(m["row"], m["stages"]): m for m in result["measured"]}
    for row, K in sorted({**measured, **predictions}, key=lambda key: key[1]):
        m, p = measured.get((row, K)), predictions.get((row, K))
        shown = [
            f"{m['seconds']['median']:.3f}" if m else "",
            f"{m['rho']['median']:.2f} ({m['rho']['min']:.2f} .. {m['rho']['max']:.2f})" if m else "",
            predicted_rho(p) if p else "",
            f"{p['rho_contended']:.2f}" if p and "rho_contended" in p else "",
            f"{p['rho_eq27']:.2f} < {p['bound_eq27']:.2f}" if p and p["rho_eq27"] else "",
            f"{p['not_stage']:.1%}" if p else "",
            f"{p['imbalance']:.0%}" if p else "",
        ]
        lines.append(f"| {K} | {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def predicted_rho(prediction: Json) -> str:
    """rho, and the least and the most that one process alone predicts, where there were several."""
    alone = [process["rho"] for process in prediction.get("by_process", [])]
    return f"{prediction['rho']:.2f}" + (f" ({min(alone):.2f} .. {max(alone):.2f})" if len(alone) > 1 else "")


def draw(result: Json, path: Path) -> None:
    """rho over K: measured, predicted, and by Eq. 27 with its bound."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "lpjax", "svg.fonttype": "none"}):
        figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
        for number, row in enumerate(dict.fromkeys(p["row"] for p in result["predictions"])):
            own = [p for p in result["predictions"] if p["row"] == row]
            K = [p["stages"] for p in own]
            color = f"C{number}"
            axis.plot(K, [p["rho"] for p in own], color=color, marker="o", label=f"{row}, predicted from parts")
            if own[0]["rho_eq27"] is None:
                continue
            axis.plot(K, [p["rho_eq27"] for p in own], color=color, marker="x", ls="--", label=f"{row}, Eq. 27")
            bound = [p["bound_eq27"] for p in own]
            axis.plot(K, bound, color=color, ls=":", label=f"{row}, bound of Eq. 27")
        for number, name in enumerate(dict.fromkeys(m["row"] for m in result["measured"])):
            if name.startswith("serial"):
                continue
            own = [m for m in result["measured"] if m["row"] == name]
            rho = [m["rho"] for m in own]
            error = [[r["median"] - r["min"] for r in rho], [r["max"] - r["median"] for r in rho]]
            axis.errorbar(
                [m["stages"] for m in own], [r["median"] for r in rho], yerr=error, fmt="sDv^P*"[number % 6], capsize=3,
                color=f"C{number % 10}", label=f"{name}, measured",
            )  # fmt: skip
        stages = sorted({p["stages"] for p in result["predictions"]})
        axis.plot(stages, stages, color="0.7", lw=1, label="K")
        axis.set(xlabel="stages K", ylabel="speed-up against serial", xticks=stages)
        axis.set_ylim(0, 1.15 * max(stages, default=1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
