"""Charts of figures over steps and over wall time."""

import html
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go

from lpjax.report import charts
from lpjax.report.charts import DASHES, Chart, colour, marker
from lpjax.report.lines import Line
from lpjax.report.record import Record

SHOWN = 24
"""Lines that a chart shows at first, at most, where runs have several lines each."""

Over = Literal["steps", "time"]


CHARTED = {
    *("accuracy", "task_loss", "aux_task_loss", "stage_loss", "stage_accuracy", "gradient_norm", "coarse_error"),
    *("relative_violation", "multiplier_norm", "penalty_coef"),
}
"""Metrics of training that have charts of their own."""


class Metric(NamedTuple):
    """A metric of a run.

    Attributes:
      name: In metrics.jsonl.
      label: Of its line; of its lines, where they are of stages or interfaces, "stage" or "interface".
    """

    name: str
    label: str


class Curve(NamedTuple):
    """A line of run number `run`.  shown: at first."""

    run: int
    label: str
    line: Line
    shown: bool = True


def learning(records: Sequence[Record]) -> list[Chart]:
    """Accuracy and loss over steps and over wall time; the composed network against the AuxNet path."""
    accuracy = [Metric("test_accuracy", "test, composed network"), Metric("accuracy", "training, last stage")]
    loss = [
        Metric("test_loss", "test, composed network"),
        Metric("task_loss", "training, last stage"),
        Metric("aux_task_loss", "training, AuxNet's head"),
    ]
    paths = [
        Metric("test_accuracy", "composed network"),
        Metric("aux_path_accuracy", "AuxNet path"),
        Metric("aux_head_accuracy", "AuxNet's head"),
    ]
    if not any(figure.name in record.lines for record in records for figure in paths[1:]):
        paths = paths[1:]  # of methods that have no such path: the composed network alone is drawn above
    both: tuple[Over, ...] = ("steps", "time")
    return [
        *(lines(f"accuracy-{over}", f"Accuracy over {over}", records, accuracy, over=over) for over in both),
        *(lines(f"loss-{over}", f"Loss over {over}, nats", records, loss, over=over, log=True) for over in both),
        lines("paths", "Test: composed network against AuxNet path", records, paths),
    ]


def stages(records: Sequence[Record]) -> list[Chart]:
    """Which stage learns: its own loss, what it and its tail get right, its gradient; and how far the
    AuxNet's piece beside it is from doing the same."""
    return [
        lines("stage-loss", "Local loss of each stage", records, [Metric("stage_loss", "stage")], log=True, keep=max),
        lines(
            "stage-accuracy",
            "Training accuracy of each stage with its tail",
            records,
            [Metric("stage_accuracy", "stage")],
            keep=min,
            hint="Methods without tails beside their stages have none.",
        ),
        lines(
            "gradient-norm",
            "Norm of each stage's gradient",
            records,
            [Metric("gradient_norm", "stage")],
            log=True,
            keep=max,
        ),
        lines(
            "coarse-error",
            "The AuxNet's piece against its stage, |G - X|²/|X|²",
            records,
            [Metric("coarse_error", "stage")],
            log=True,
            keep=max,
            hint="Methods without tails beside their stages have none.",
        ),
    ]


def constraints(records: Sequence[Record]) -> list[Chart]:
    """How far the stages are from being one network, and what pulls them together."""
    return [
        lines(
            "violation",
            "Relative violation of each interface, |r|²/|X|²",
            records,
            [Metric("relative_violation", "interface")],
            log=True,
            keep=max,
        ),
        lines(
            "multiplier",
            "Multiplier of each interface, root mean square",
            records,
            [Metric("multiplier_norm", "interface")],
            log=True,
            keep=max,
        ),
        lines("penalty", "Penalty coefficient β", records, [Metric("penalty_coef", "β")], log=True),
    ]


def gradients(records: Sequence[Record]) -> list[Chart]:
    """Each stage's gradient against backprop's."""
    hint = "Recorded with diagnose_every=N."
    cosine = lines(
        "cosine",
        "Cosine of each stage's gradient with backprop's",
        records,
        [Metric("gradient_cosine", "stage")],
        keep=min,
        hint=hint,
    )
    ratio = lines(
        "ratio",
        "Norm of each stage's gradient over backprop's",
        records,
        [Metric("gradient_ratio", "stage")],
        log=True,
        keep=max,
        hint=hint,
    )
    return [cosine, ratio]


def others(records: Sequence[Record]) -> list[Chart]:
    """What the methods of the runs record beside the metrics that have charts of their own."""
    axes: dict[str, str] = {}
    for record in records:
        for phase in (record.structure or {}).get("phases", ()):
            axes |= {name: axis for name, axis in phase["metrics"].items() if name not in CHARTED}
    words = {name: name.replace("_", " ") for name in axes}
    return [
        lines(f"metric-{name}", words[name].capitalize(), records, [Metric(name, axis or words[name])])
        for name, axis in axes.items()
        if any(name in record.lines for record in records)
    ]


def waiting(records: Sequence[Record]) -> Chart:
    """For data, over the run."""
    return lines("data-seconds", "Seconds a step waited for data", records, [Metric("data_seconds", "wait")], log=True)


def lines(
    key: str,
    title: str,
    records: Sequence[Record],
    figures: Sequence[Metric],
    *,
    over: Over = "steps",
    log: bool = False,
    keep: Callable[..., int] | None = None,
    hint: str = "",
) -> Chart:
    """Lines of all runs that have the figures.

    log: the scale of y, where anything is above 0.  keep: max or min; which of a run's lines, by its last value, is
    shown at first where there are more than `SHOWN`.  hint: how to have the figures.
    """
    curves = [
        Curve(run, label, line)
        for run, record in enumerate(records)
        for figure in figures
        for label, line in _labelled(figure, record.lines.get(figure.name, ()))
        if over == "steps" or np.isfinite(line.seconds).any()
    ]
    has = {curve.run for curve in curves}
    without = [record.name for run, record in enumerate(records) if run not in has]
    text = [f"Not recorded by {', '.join(without)}. {hint}".strip()] if without else []
    if not curves:
        return Chart(key, title, tuple(text), None)
    log = log and any((curve.line.value > 0).any() for curve in curves)
    text += _about(curves, log)
    if keep and len(curves) > SHOWN:
        chosen = [_extreme([curve for curve in curves if curve.run == run], keep) for run in sorted(has)]
        text.append(f"Shown at first: each run's {chosen[0].label}. The legend switches on the others.")
        curves = chosen + [curve._replace(shown=False) for curve in curves]
    scale, unit = (1.0, "step") if over == "steps" else _time_unit(max(np.nanmax(c.line.seconds) for c in curves))
    labels = list(dict.fromkeys(curve.label for curve in curves))
    traces = [_trace(curve, records, labels.index(curve.label), over, scale) for curve in curves]
    if len(records) > 1 and len(labels) > 1:
        traces += [_entry(label, index, curves) for index, label in enumerate(labels)]
    made = charts.layout(360, legend=len(labels) > 1)
    made["xaxis"] |= {"title": {"text": unit}, "rangemode": "tozero"}
    made["yaxis"] |= charts.scale(log)
    if not any(curve.line.value.any() for curve in curves):  # NaN counts as something
        text.append("Zero throughout.")
        made["yaxis"] |= {"rangemode": "nonnegative"}
    made["hovermode"] = "x unified" if len(curves) <= 8 else "closest"
    return Chart(key, title, tuple(text), go.Figure(traces, made), ("yaxis", "xaxis"))


def _labelled(figure: Metric, found: Sequence[Line]) -> list[tuple[str, Line]]:
    if figure.label in ("stage", "interface"):  # stages count from 0, interface j is the input of stage j >= 1
        first = int(figure.label == "interface")
        return [(f"{figure.label} {first + i}", line) for i, line in enumerate(found)]
    return [(figure.label, line) for line in found]


def _about(curves: Sequence[Curve], log: bool) -> list[str]:
    """What the reader must know of how lines are drawn."""
    text = []
    thin = [line for _, _, line, _ in curves if len(line.value) < line.points]
    if thin:
        most = max(thin, key=lambda line: line.points)
        text.append(
            f"Thinned out: {len(thin)} of {len(curves)} lines; of up to {most.points:,} points a line "
            f"{len(most.value):,} are drawn: the first, the last, and the smallest and the largest of each bucket."
        )
    if log and any((curve.line.value <= 0).any() for curve in curves):
        text.append("Zeros do not show on a logarithmic scale.")
    return text


def _extreme(own: Sequence[Curve], keep: Callable[..., int]) -> Curve:
    """That of one run's lines which is largest or smallest at its end."""
    ends = [float(np.nan_to_num(curve.line.value[-1])) for curve in own]
    return own[ends.index(keep(ends))]._replace(label=f"{'largest' if keep is max else 'smallest'} at the end")


def _time_unit(most: float) -> tuple[float, str]:
    """Seconds of a unit in which `most` seconds read well, and its name."""
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if most >= 3 * size:
            return size, name
    return 1.0, "seconds"


def _trace(curve: Curve, records: Sequence[Record], label: int, over: Over, scale: float) -> go.Scatter:
    several = len(records) > 1
    style = curve.run if several else label
    name = html.escape(f"{records[curve.run].name}: {curve.label}" if several else curve.label)
    x = curve.line.step.astype(np.int32) if over == "steps" else (curve.line.seconds / scale).astype(np.float32)
    return go.Scatter(
        x=x,
        y=curve.line.value.astype(np.float32),
        name=name,
        mode="lines+markers",
        line={"color": colour(style), "dash": DASHES[label % len(DASHES)], "width": 1.8},
        marker={"symbol": marker(style), "size": 8, "maxdisplayed": 0 if len(x) <= 40 else 8},
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
        legendgroup=curve.label,
        showlegend=not several,
        visible=_visible(curve.shown),
        meta={"run": curve.run},
    )


def _entry(label: str, index: int, curves: Sequence[Curve]) -> go.Scatter:
    """The legend's entry for a line that several runs have: it stands for, and switches, all of theirs."""
    return go.Scatter(
        x=[None],
        y=[None],
        name=label,
        mode="lines",
        line={"color": "#808080", "dash": DASHES[index % len(DASHES)], "width": 1.8},
        legendgroup=label,
        visible=_visible(any(curve.shown for curve in curves if curve.label == label)),
    )


def _visible(shown: bool) -> bool | str:
    return True if shown else "legendonly"
