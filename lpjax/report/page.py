"""Runs as one HTML file that needs nothing else."""

import datetime
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from lpjax.report import charts, curves, drawings
from lpjax.report.record import Record, differences, flat, names_in
from lpjax.version import __version__

NOTHING = "\N{EN DASH}"
"""What a table has where there is no value."""


def render(records: Sequence[Record]) -> str:
    """Write the page of one run, or of several beside each other, as HTML."""
    sections = {
        "Accuracy and loss": _charts(curves.learning(records)),
        "Samples": _samples(records),
        "Stages": _charts(curves.stages(records)),
        "Constraints": _charts(curves.constraints(records)),
        "Gradients": _charts(curves.gradients(records)),
        "Other metrics": _charts(curves.others(records)),
        "Cut": _charts(drawings.cuts(records)) + _cut_tables(records),
        "Schedule of a step": _charts(drawings.schedules(records)),
        "Time": _charts([*drawings.times(records), curves.waiting(records)]),
        "Configuration": _configuration(records),
        "Versions and devices": _versions(records),
    }
    body = _runs(records) + "".join(f"<h2>{name}</h2>\n{content}\n" for name, content in sections.items() if content)
    names = ", ".join(record.name for record in records)
    now = datetime.datetime.now(datetime.UTC)
    return _file("page.html").substitute(
        title=_text(names if len(records) <= 3 else f"{len(records)} runs"),
        made=f"lpjax {__version__}, {now:%Y-%m-%d %H:%M} UTC.",
        style=_file("page.css").template,
        plotly=get_plotlyjs(),
        script=_file("page.js").template,
        scales=json.dumps({"log": charts.scale(log=True), "linear": charts.scale(log=False)}),
        body=body,
    )


def _file(name: str) -> Template:
    return Template(resources.files("lpjax.report").joinpath(name).read_text())


def _text(value: object) -> str:
    return html.escape(str(value))


# -------------------------------------------------------------------------------------------------------------- charts


def _charts(made: Iterable[charts.Chart]) -> str:
    charts = "".join(map(_chart, made))
    return f'<div class="charts">\n{charts}</div>' if charts else ""


def _chart(chart: charts.Chart) -> str:
    head = f"<h3>{_text(chart.title)}</h3>"
    text = "".join(f"<p>{_text(paragraph)}</p>" for paragraph in chart.text)
    if chart.figure is None:
        return f'<section class="chart" id="{chart.key}">{head}<p class="none">Nothing to draw.</p>{text}</section>\n'
    buttons = " ".join(_button(axis, chart.figure.layout[axis].type == "log") for axis in chart.axes)
    return (
        f'<section class="chart" id="{chart.key}"><div class="head">{head}<span>{buttons}</span></div>'
        f'<div class="plot" role="img" aria-label="{_text(chart.title)}"></div>{text}'
        f'<script type="application/json">{chart.figure.to_json()}</script></section>\n'
    )


def _button(axis: str, pressed: bool) -> str:
    return f'<button type="button" data-axis="{axis}" aria-pressed="{str(pressed).lower()}">log {axis[0]}</button>'


# -------------------------------------------------------------------------------------------------------------- tables


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of a head in text and of rows in HTML."""
    top = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else NOTHING


def _runs(records: Sequence[Record]) -> str:
    """The table of runs, what is missing of them, and the switches of their lines."""
    accuracies = {"test_accuracy": "test accuracy", "aux_path_accuracy": "AuxNet path"}
    more = {"test_top5_accuracy": "top-5", "ema_accuracy": "averaged weights"}  # columns of runs that have it
    more |= {"test_bits_per_byte": "bits per byte"}
    accuracies |= {name: more[name] for name in more if any(name in record.lines for record in records)}
    head = ("run", "method", "K", "mesh", "seed", "steps", *accuracies.values(), "s/step", "seconds", "ended")
    rows = []
    for index, record in enumerate(records):
        result = record.result or {}
        config, structure = record.config or {}, record.structure or {}
        phases = structure.get("phases", ())
        settings = result.get("settings") or {k: v for phase in phases for k, v in phase["settings"].items()}
        names = result.get("method") or ", ".join(phase["method"] for phase in phases)
        method = ", ".join([names, *(f"{name}={value}" for name, value in settings.items())] if names else [])
        mesh = result.get("mesh") or dict(zip(("stage", "data"), structure.get("mesh", ()), strict=False))
        cells = (
            method or NOTHING,
            result.get("num_stages", config.get("num_stages", NOTHING)),
            " x ".join(map(str, mesh.values())) or NOTHING,
            result.get("seed", config.get("seed", NOTHING)),
            f"{record.last_step:,}",
            *(_last(record, name) for name in accuracies),
            _number(record.step_seconds, ".3g"),
            _number(result.get("seconds_total"), ",.0f"),
            record.ended,
        )
        rows.append([_name(record, index, len(records) > 1), *map(_text, cells)])
    notes: dict[str, list[str]] = {}
    for record in records:
        recovered = (f"after step {step:,} learning rates times {factor:g}" for step, factor in record.recoveries)
        for note in (*record.notes, *recovered):
            notes.setdefault(note, []).append(record.name)
    of = {note: f": {', '.join(names)}" if len(records) > 1 else "" for note, names in notes.items()}
    listed = "".join(f"<li>{_text(note + names)}</li>" for note, names in of.items())
    table = _table(head, rows) + (f"<ul>{listed}</ul>" if listed else "")
    if len(records) == 1:
        return table
    switches = "".join(
        f'<label><input type="checkbox" data-run="{index}" checked> {_name(record, index, several=True)}</label>'
        for index, record in enumerate(records)
    )
    return f'{table}<nav aria-label="runs that are shown">{switches}</nav>'


def _samples(records: Sequence[Record]) -> str:
    """What models of text made at tests, behind the prompt."""
    rows = [
        (_text(record.name), f"{step:,}", f"<pre><mark>{_text(prompt)}</mark>{_text(sample)}</pre>")
        for record in records
        for step, prompt, sample in record.samples
    ]
    return _table(("run", "step", "prompt, and what the network went on with"), rows) if rows else ""


def _name(record: Record, index: int, several: bool) -> str:
    """With its marker, where there are several."""
    sign = charts.MARKERS[charts.marker(index)]
    glyph = f'<span style="color: {charts.colour(index)}" aria-hidden="true">{sign}</span> ' if several else ""
    return glyph + _text(record.name)


def _last(record: Record, name: str) -> str:
    """The run's, or that of its last test so far, with the step."""
    if isinstance(value := (record.result or {}).get(name), float):
        return f"{value:.4f}"
    found = record.lines.get(name)
    return f"{found[0].value[-1]:.4f} (step {found[0].step[-1]:,})" if found else NOTHING


def _cut_tables(records: Sequence[Record]) -> str:
    head = ("", "units", "input", "output", "parameters", "MFLOP forward", "beside it")
    text = []
    for group, structure in drawings.with_one_cut(records):
        pieces = [(f"stage {k}", row) for k, row in enumerate(structure["stages"])]
        pieces += [(f"AuxNet {j}", row) for j, row in enumerate(structure["aux"])]
        rows = [
            (
                name,
                _text(row["units"]),
                *(drawings.shape_text(row[end]) for end in ("in_shape", "out_shape")),
                f"{row['parameters']:,}",
                f"{row['flops'] / 1e6:,.3f}",
                f"{sum(row['beside'].values()) / 1e6:,.3f}" if row.get("beside") else "",
            )
            for name, row in pieces
        ]
        summary = f"<summary>Units, shapes and operations{_text(drawings.of(group, records))}</summary>"
        text.append(f"<details open>{summary}{_table(head, rows)}</details>")
    return "".join(text) + ("<p>Of one example; beside it: a coarse tail or a classifier.</p>" if text else "")


def _compared(records: Sequence[Record], tables: Sequence[Mapping[str, str] | None], names: Iterable[str]) -> str:
    """Fields by runs; marked where runs differ."""
    different = differences(tables)

    def cell(name: str, table: Mapping[str, str] | None) -> str:
        text = NOTHING if table is None or name not in table else _text(table[name])
        return f"<mark>{text}</mark>" if name in different and table is not None else text

    rows = [(_text(name), *(cell(name, table) for table in tables)) for name in names]
    return _table(("", *(record.name for record in records)), rows)


def _configuration(records: Sequence[Record]) -> str:
    tables = [None if record.config is None else flat(record.config) for record in records]
    names, different = names_in(tables), differences(tables)
    if not names:
        return '<p class="none">No config.json.</p>'
    everything = f"<details><summary>All {len(names)} settings</summary>{_compared(records, tables, names)}</details>"
    if len(records) == 1:
        return everything
    if not different:
        return f"<p>No differences.</p>{everything}"
    return f"<p>{len(different)} settings differ.</p>{_compared(records, tables, different)}{everything}"


def _versions(records: Sequence[Record]) -> str:
    tables = [_versions_of(record) for record in records]
    names = names_in(tables)
    return _compared(records, tables, names) if names else '<p class="none">No result.json.</p>'


def _versions_of(record: Record) -> dict[str, str] | None:
    if record.result is None:
        return None
    known = {"device": record.result.get("device"), **record.result.get("versions", {})}
    return {name: str(value) for name, value in known.items() if value is not None}
