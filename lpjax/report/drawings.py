"""The cut of a network, the schedule of a step, and where the seconds go, as bars."""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lpjax.report import charts, schedule
from lpjax.report.record import Record

Group = tuple[list[Record], dict[str, Any]]
"""Runs that are drawn once, and the structure of the first."""


def with_one_cut(records: Sequence[Record]) -> list[Group]:
    """Group the runs that have the same stages and the same AuxNet."""
    return _grouped(records, lambda record, structure: [structure["stages"], structure["aux"]])


def _grouped(records: Sequence[Record], key: Callable[[Record, dict[str, Any]], Any]) -> list[Group]:
    """Runs with a structure, those together for which `key` is the same."""
    groups: dict[str, Group] = {}
    for record in records:
        if record.structure:
            group, _ = groups.setdefault(json.dumps(key(record, record.structure)), ([], record.structure))
            group.append(record)
    return list(groups.values())


def of(group: Sequence[Record], records: Sequence[Record]) -> str:
    """For titles: of which runs something is, where that needs saying, else nothing."""
    return "" if len(records) == 1 else ": " + ", ".join(record.name for record in group)


def without(records: Sequence[Record]) -> tuple[str, ...]:
    """For a chart's text: which runs have nothing to draw from."""
    names = [record.name for record in records if not record.structure]
    return (f"No structure.json to draw from: {', '.join(names)}.",) if names else ()


def _bars(index: int, name: str, rows: list[str], lengths: list[Any], hover: str, **more: Any) -> go.Bar:
    """Bars in the colour and pattern number `index`, one a row of the chart."""
    shape = charts.PATTERNS[index % len(charts.PATTERNS)]
    pattern = {"shape": shape, "fillmode": "overlay", "solidity": 0.15, "size": 8, "fgcolor": "#ffffff"}
    marker = {"color": charts.colour(index), "pattern": pattern, "line": {"width": 1, "color": "#808080"}}
    hover += "<extra></extra>"
    return go.Bar(y=rows, x=lengths, orientation="h", name=name, marker=marker, hovertemplate=hover, **more)


def _layout(height: int, unit: str, legend: bool = True) -> dict[str, Any]:
    """Of a chart of bars, its first row on top."""
    layout = charts.layout(height, legend)
    layout["xaxis"] |= {"title": {"text": unit}}
    layout["yaxis"] |= {"autorange": "reversed"}
    return layout | {"barmode": "stack"}


# ----------------------------------------------------------------------------------------------------------------- cut


def cuts(records: Sequence[Record]) -> list[charts.Chart]:
    """Draw stages end to end, and AuxNet pieces beside them: by operations and by parameters, one pair a network."""
    made = []
    for number, (group, structure) in enumerate(with_one_cut(records)):
        stages, aux = structure["stages"], structure["aux"]
        kinds = dict.fromkeys(kind for stage in stages for kind in stage["beside"])
        beside = {f"{kind}s": [{"flops": stage["beside"].get(kind, 0.0)} for stage in stages] for kind in kinds}
        rows = {"stages": stages, **beside, "AuxNet": aux}
        for what, title in (("flops", "operations of a forward pass"), ("parameters", "parameters")):
            heading = f"The cut by {title}{of(group, records)}"
            made.append(_cut(f"cut-{what}-{number}", heading, rows, what))
    return made or [charts.Chart("cut", "The cut", without(records), None)]


def _cut(key: str, title: str, rows: Mapping[str, Sequence[Mapping[str, Any]]], what: str) -> charts.Chart:
    scale, unit = (1e6, "MFLOP an example") if what == "flops" else (1.0, "parameters")
    rows = {name: pieces for name, pieces in rows.items() if any(piece.get(what) for piece in pieces)}
    traces = []
    for k in range(max(map(len, rows.values()), default=0)):
        there = {name: pieces[k] for name, pieces in rows.items() if k < len(pieces)}
        traces.append(
            _bars(
                k,
                f"stage {k}",
                list(there),
                [piece[what] / scale for piece in there.values()],
                f"%{{y}}, stage {k}: %{{x:,.4g}} {unit}%{{hovertext}}",
                hovertext=list(map(_contents, there.values())),
                text=[str(k)] * len(there),
                **_TEXT,
            )
        )
    layout = _layout(120 + 50 * len(rows), unit, legend=False)
    return charts.Chart(key, title, (), go.Figure(traces, layout | {"uniformtext": {"minsize": 10, "mode": "hide"}}))


_TEXT = {
    "textposition": "inside",
    "insidetextanchor": "middle",
    "textangle": 0,
    "textfont": {"color": "#ffffff", "size": 14, "weight": 700},
}


def _contents(piece: Mapping[str, Any]) -> str:
    """Shapes and units, where they are known."""
    if "units" not in piece:
        return ""
    ends = (shape_text(piece[end]) for end in ("in_shape", "out_shape"))
    return f"<br>{' → '.join(ends)}<br>{html.escape(piece['units'])}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape in text, such as "8x8x1"."""
    return "x".join(map(str, shape))


# ------------------------------------------------------------------------------------------------------------ schedule


def schedules(records: Sequence[Record]) -> list[charts.Chart]:
    """Draw a step as a timeline over devices, one for all runs of the same structure and measured seconds, if any."""
    made: list[charts.Chart] = []
    for group, structure in _grouped(records, lambda record, structure: [structure, record.measured]):
        measured = group[0].measured
        took = [f"{1e3 * seconds:,.3g} ms" for record in group if (seconds := record.step_seconds)]
        text = (f"The step of the run as a whole took {', '.join(took)} (median).",) if took else ()
        for number, phase in enumerate(structure["phases"]):
            seconds = measured["phases"][number]["seconds"] if measured else None
            drawn = schedule.make(phase, seconds, (measured or {}).get("device", ""))
            title = f"A step of {phase['method']}{of(group, records)}"
            made.append(_timeline(f"schedule-{len(made)}", title, drawn, structure["mesh"], *text))
    return made or [charts.Chart("schedule", "A step", without(records), None)]


def _timeline(key: str, title: str, drawn: schedule.Schedule, mesh: Sequence[int], *text: str) -> charts.Chart:
    devices, columns = mesh
    scale, unit = (1e3, "ms") if drawn.unit == "s" else (1.0, drawn.unit)
    traces = []
    for index, kind in enumerate(drawn.kinds):
        bars = [bar for bar in drawn.bars if bar.kind == kind]
        traces.append(
            _bars(
                index,
                kind,
                [f"device {bar.device}" for bar in bars],
                [scale * bar.length for bar in bars],
                f"%{{hovertext}}<br>%{{x:,.4g}} {unit} from %{{base:,.4g}}",
                base=[scale * bar.start for bar in bars],
                hovertext=[bar.what for bar in bars],
            )
        )
    listed = 20 * len(drawn.kinds)  # pixels of a legend on a narrow screen, which has one entry a line
    layout = _layout(150 + 40 * devices + listed // 2, unit)
    layout["legend"] |= {"maxheight": 20 + listed}
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["yaxis"] |= {"categoryarray": [f"device {d}" for d in range(devices)]}
    text = (
        *text,
        f"{drawn.note[0].upper()}{drawn.note[1:]}.",
        "Exchanges, optimisers and waits for batch norm are left out."
        + (f" A row is {columns} devices along 'data', which do the same." if columns > 1 else ""),
        f"The devices compute {drawn.busy:.0%} of this time.",
    )
    return charts.Chart(key, title, text, go.Figure(traces, layout | {"barmode": "overlay"}))


# ---------------------------------------------------------------------------------------------------------------- time


def times(records: Sequence[Record]) -> list[charts.Chart]:
    """Draw what a step's seconds, and a whole run's, are spent on."""

    def rest(whole: float | None, part: float | None) -> float | None:
        return None if whole is None else max(whole - (part or 0.0), 0.0)

    step = {
        "waiting for data": [record.data_seconds for record in records],
        "the rest": [rest(record.step_seconds, record.data_seconds) for record in records],
    }
    totals = [(record.result or {}).get("seconds_total") for record in records]
    # Not known where the run's end, and so its seconds, is not.
    steps = [
        record.step_seconds * record.last_step if record.step_seconds and total else None
        for record, total in zip(records, totals, strict=True)
    ]
    whole = {"steps (median times number)": steps, "compiling, tests, checkpoints": list(map(rest, totals, steps))}
    return [
        _split("step-seconds", "Seconds of a step, median", records, step, _WAIT),
        _split("run-seconds", "Seconds of the run", records, whole),
    ]


_WAIT = (
    "Waiting for data is for files to be read and decoded. It is near 0 where that keeps ahead of the steps, and for a "
    "set that stays on the devices."
)


def _split(
    key: str, title: str, records: Sequence[Record], parts: Mapping[str, Sequence[float | None]], *text: str
) -> charts.Chart:
    lacking = [r.name for i, r in enumerate(records) if all(values[i] is None for values in parts.values())]
    text += (f"Not known of {', '.join(lacking)}.",) if lacking else ()
    if len(lacking) == len(records):
        return charts.Chart(key, title, text, None)
    names = [html.escape(record.name) for record in records]
    traces = [
        _bars(index, name, names, list(values), f"%{{y}}<br>{name}: %{{x:,.4g}} s")
        for index, (name, values) in enumerate(parts.items())
    ]
    return charts.Chart(key, title, text, go.Figure(traces, _layout(140 + 30 * len(records), "seconds")))
