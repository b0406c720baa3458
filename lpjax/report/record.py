"""What a run left in its folder, finished or not, whole or in part."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpjax.errors import BadInput
from lpjax.report import schedule
from lpjax.report.lines import POINTS, Line, Table


@dataclass(frozen=True)
class Record:
    """What a run left in its folder, for the page.

    Attributes:
      name: Of the run.
      lines: By the metric's name, one for each stage or interface, or one.
      last_step: Of the last whole line; 0 without any.
      recoveries: (step, factor) where learning rates were made smaller.
      samples: (step, prompt, what it went on with) of a model of text at tests.
      step_seconds: Median over steps, of the whole step; None where not known.
      data_seconds: Likewise, of its wait for data.
      config: config.json; None where there is none that can be used.
      result: result.json, likewise.
      structure: structure.json, likewise.
      measured: seconds.json, likewise.
      notes: In words, what is missing or was left out, and which methods went on after which step.
    """

    name: str
    lines: Mapping[str, tuple[Line, ...]]
    last_step: int = 0
    recoveries: tuple[tuple[int, float], ...] = ()
    samples: tuple[tuple[int, str, str], ...] = ()
    step_seconds: float | None = None
    data_seconds: float | None = None
    config: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    structure: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def ended(self) -> str:
        """How the run ended, or that it did not."""
        ended, steps = ((self.result or {}).get(name) for name in ("ended", "steps"))
        if ended in (None, "phase"):
            return "going on, or killed"
        if steps != self.last_step:
            return f"{ended} at step {steps}; since then going on, or killed"
        return str(ended)


def read(folder: Path, name: str | None = None, points: int = POINTS) -> Record:
    """Read what a run left in its folder.

    Args:
      folder: Its workdir.
      name: What to call it.  Unset: the folder's name.
      points: Of a line that is drawn, at most.

    Raises:
      BadInput: There is no run in the folder.
      OSError: metrics.jsonl cannot be read.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder: expected the workdir of a run; correct the path")
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise BadInput(f"{folder}: no metrics.jsonl in it: expected the workdir of a run; correct the path")
    table = Table(path)
    notes = table.notes()
    names = ("config.json", "result.json", "structure.json", "seconds.json")
    config, result, structure, measured = (_read_json(folder / name, notes) for name in names)
    if structure and (problem := _unusable(structure)):
        structure = None
        notes.append(f"structure.json cannot be used: {problem}")
    if measured and not (structure and _fits(measured, structure)):
        measured = None
        notes.append("seconds.json is of another cut, method, mesh or batch than structure.json: not used")
    per_step, waited = (_number(result, name) for name in ("seconds_per_step_median", "data_seconds_median"))
    if not table.timed and table.last_step:
        notes.append(
            "no seconds in metrics.jsonl: wall time is steps times the median seconds of a step"
            if per_step
            else "no seconds in metrics.jsonl: not drawn over wall time"
        )
    return Record(
        name=name or folder.resolve().name,
        lines=table.lines(points, per_step),
        last_step=table.last_step,
        recoveries=tuple(table.recoveries),
        samples=tuple(table.samples),
        step_seconds=per_step or table.step_seconds(),
        data_seconds=waited or table.data_seconds(),
        config=config,
        result=result,
        structure=structure,
        measured=measured,
        notes=(*notes, *table.phases),
    )


def _read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """What a file holds; where nothing, adds why to the notes."""
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
        notes.append(f"{path.name} cannot be read: not an object")
    except FileNotFoundError:
        notes += [] if path.name == "seconds.json" else [f"no {path.name}"]
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
    return None


def _number(values: Mapping[str, Any] | None, name: str) -> float | None:
    value = (values or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _unusable(structure: Mapping[str, Any]) -> str | None:
    """What is wrong with it for those who draw it."""
    try:
        for phase in structure["phases"]:
            schedule.make(phase, None)
            dict(phase["metrics"])
        for row in (*structure["stages"], *structure["aux"]):
            if not {"units", "in_shape", "out_shape", "parameters", "flops"} <= row.keys():
                return f"expected units, shapes and parameters of each piece, found {', '.join(row)}"
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"{type(error).__name__} {error}"
    return None


def _fits(measured: Mapping[str, Any], structure: Mapping[str, Any]) -> bool:
    """Whether seconds were measured of this structure."""
    if any(measured.get(name) != structure[name] for name in ("mesh", "examples", "cuts")):
        return False
    phases = measured.get("phases")
    if not isinstance(phases, list) or len(phases) != len(structure["phases"]):
        return False
    pairs = zip(phases, structure["phases"], strict=True)
    return all(a.get("method") == b["method"] and len(a["seconds"]) == len(b["schedule"]) for a, b in pairs)


# ---------------------------------------------------------------------------------------------------------- comparison


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration, for comparisons: "section.field" to the value as JSON."""
    made: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            made |= flat(value, f"{prefix}{name}.")
        else:
            made[prefix + name] = json.dumps(value)
    return made


def differences(tables: Sequence[Mapping[str, str] | None]) -> list[str]:
    """Find the fields in which runs differ.

    Args:
      tables: Of each run; one without a table is not compared.
    """
    known = [table for table in tables if table is not None]
    return [name for name in names_in(tables) if len({table.get(name) for table in known}) > 1]


def names_in(tables: Sequence[Mapping[str, str] | None]) -> list[str]:
    """List the fields that any of the tables has, in order."""
    return list(dict.fromkeys(name for table in tables for name in table or ()))


def names_of(folders: list[Path]) -> list[str]:
    """Name runs by the shortest ends of their folders' paths that differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
