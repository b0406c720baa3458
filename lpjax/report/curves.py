"""Charts of metrics over steps and over wall time."""

import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go

from lpjax.report import charts
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


_HINTS = {
    **dict.fromkeys(("stage_accuracy", "coarse_error"), "Methods without tails beside their stages have none."),
    **dict.fromkeys(("gradient_cosine", "gradient_ratio"), "Recorded with diagnose_every=N."),
}
"""How to have a metric that not all runs have."""


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
      run: Number of its run.
      label: Its name.
      line: Its points.
      shown: Whether it is at first.
    """

    run: int
    label: str
    line: Line
    shown: bool = True


def learning(records: Sequence[Record]) -> list[charts.Chart]:
    """Charts of accuracy and loss over steps and over wall time; the composed network against the AuxNet path."""
    draw = partial(lines, records)
    accuracy = {"test_accuracy": "test, composed network", "test_top5_accuracy": "test, top-5"}
    accuracy |= {"ema_accuracy": "test, averaged weights"}
    accuracy |= {"accuracy": "training, last stage"}
    loss = {"test_loss": "test, composed network", "task_loss": "training, last stage"}
    loss |= {"aux_task_loss": "training, AuxNet's head"}
    paths = {"aux_path_accuracy": "AuxNet path", "aux_head_accuracy": "AuxNet's head"}
    if any(name in record.lines for record in records for name in paths):
        paths = {"test_accuracy": "composed network"} | paths
    bits = {"test_bits_per_byte": "test, composed network", "bits_per_byte": "training, last stage"}
    both: tuple[Over, ...] = ("steps", "time")
    return [
        *(draw(f"accuracy-{over}", f"Accuracy over {over}", accuracy, over=over) for over in both),
        *(draw(f"loss-{over}", f"Loss over {over}, nats", loss, over=over, log=True) for over in both),
        *([draw("bits", "Bits per byte", bits)] if any(name in r.lines for r in records for name in bits) else []),
        draw("paths", "Test: composed network against AuxNet path", paths),
    ]


def stages(records: Sequence[Record]) -> list[charts.Chart]:
    """Draw which stage learns: loss, what it and its tail get right, gradient, and how far its AuxNet piece is off."""
    draw, error = partial(lines, records), "The AuxNet's piece against its stage, |G - X|²/|X|²"
    return [
        draw("stage-loss", "Local loss of each stage", {"stage_loss": "stage"}, log=True, keep=max),
        draw("stage-accuracy", "Training accuracy of each stage with its tail", {"stage_accuracy": "stage"}, keep=min),
        draw("gradient-norm", "Norm of each stage's gradient", {"gradient_norm": "stage"}, log=True, keep=max),
        draw("coarse-error", error, {"coarse_error": "stage"}, log=True, keep=max),
    ]


def constraints(records: Sequence[Record]) -> list[charts.Chart]:
    """Charts of how far the stages are from being one network, and of what pulls them together."""
    violation, multiplier = {"relative_violation": "interface"}, {"multiplier_norm": "interface"}
    draw = partial(lines, records, log=True)
    return [
        draw("violation", "Relative violation of each interface, |r|²/|X|²", violation, keep=max),
        draw("multiplier", "Multiplier of each interface, root mean square", multiplier, keep=max),
        draw("penalty", "Penalty coefficient β", {"penalty_coef": "β"}),
    ]


def gradients(records: Sequence[Record]) -> list[charts.Chart]:
    """Charts of each stage's gradient against backprop's."""
    cosine, ratio = {"gradient_cosine": "stage"}, {"gradient_ratio": "stage"}
    return [
        lines(records, "cosine", "Cosine of each stage's gradient with backprop's", cosine, keep=min),
        lines(records, "ratio", "Norm of each stage's gradient over backprop's", ratio, log=True, keep=max),
    ]


def others(records: Sequence[Record]) -> list[charts.Chart]:
    """Charts of what the methods of the runs record beside the metrics that have charts of their own."""
    phases = [phase for record in records if record.structure for phase in record.structure["phases"]]
    axes = {name: axis for phase in phases for name, axis in phase["metrics"].items() if name not in CHARTED}
    words = {name: name.replace("_", " ") for name in axes}
    return [
        lines(records, f"metric-{name}", words[name].capitalize(), {name: axis or words[name]})
        for name, axis in axes.items()
        if any(name in record.lines for record in records)
    ]


def waiting(records: Sequence[Record]) -> charts.Chart:
    """The chart of waiting for data, over the run."""
    return lines(records, "data-seconds", "Seconds a step waited for data", {"data_seconds": "wait"}, log=True)


def lines(
    records: Sequence[Record],
    key: str,
    title: str,
    metrics: Mapping[str, str],
    *,
    over: Over = "steps",
    log: bool = False,
    keep: Callable[..., int] | None = None,
) -> charts.Chart:
    """Draw lines of all runs that have the metrics.

    Args:
      records: The runs.
      key: Of the chart.
      title: Of the chart.
      metrics: What is drawn: names in metrics.jsonl to the label of the line; of its lines, where they are of stages or
        interfaces, "stage" or "interface".
      over: What x is.
      log: Whether y is logarithmic, where anything is above 0.
      keep: max or min: which of a run's lines, by its last value, is shown at first where there are more than `SHOWN`.
    """
    curves = [
        Curve(run, label, line)
        for run, record in enumerate(records)
        for name, label_of in metrics.items()
        for label, line in _labelled(label_of, record.lines.get(name, ()))
        if over == "steps" or np.isfinite(line.seconds).any()
    ]
    has = {curve.run for curve in curves}
    without = [record.name for run, record in enumerate(records) if run not in has]
    hint = next((_HINTS[name] for name in metrics if name in _HINTS), "")
    text = [f"Not recorded by {', '.join(without)}. {hint}".strip()] if without else []
    if not curves:
        return charts.Chart(key, title, tuple(text), None)
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
    return charts.Chart(key, title, tuple(text), go.Figure(traces, made), ("yaxis", "xaxis"))


def _labelled(label: str, found: Sequence[Line]) -> list[tuple[str, Line]]:
    if label in ("stage", "interface"):  # stages count from 0, interface j is the input of stage j >= 1
        return [(f"{label} {i}", line) for i, line in enumerate(found, int(label == "interface"))]
    return [(label, line) for line in found]


def _about(curves: Sequence[Curve], log: bool) -> list[str]:
    """What the reader must know of how lines are drawn."""
    text = []
    fewer = [line for _, _, line, _ in curves if len(line.value) < line.points]
    if fewer:
        most = max(fewer, key=lambda line: line.points)
        text.append(
            f"With fewer points: {len(fewer)} of {len(curves)} lines; of up to {most.points:,} points a line "
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
        line={"color": charts.colour(style), "dash": charts.DASHES[label % len(charts.DASHES)], "width": 1.8},
        marker={"symbol": charts.marker(style), "size": 8, "maxdisplayed": 0 if len(x) <= 40 else 8},
        hovertemplate="%{y:.4g}<extra>" + name + "</extra>",
        legendgroup=curve.label,
        showlegend=not several,
        visible=curve.shown or "legendonly",
        meta={"run": curve.run},
    )


def _entry(label: str, index: int, curves: Sequence[Curve]) -> go.Scatter:
    """The legend's entry for a line that several runs have: it stands for, and switches, all of theirs."""
    return go.Scatter(
        x=[None],
        y=[None],
        name=label,
        mode="lines",
        line={"color": "#808080", "dash": charts.DASHES[index % len(charts.DASHES)], "width": 1.8},
        legendgroup=label,
        visible=any(curve.shown for curve in curves if curve.label == label) or "legendonly",
    )
