"""What an experiment says of itself."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.harness.markdown import source

Json = dict[str, Any]

RESULTS = Path(__file__).parent.parent / "results"
"""Folder of the JSON files."""


def result(name: str) -> Json:
    """A file of experiments/results/, by its name without ending."""
    return json.loads((RESULTS / f"{name}.json").read_text())


@dataclass(frozen=True)
class Option:
    """An option of the command line: --NAME=VALUE, or --NAME alone where the default is False.

    Attributes:
      name: Without the dashes.
      default: Its type is the value's; a text where it is None.
      help: What it does.
      choices: The values that it can have; None: any.
      positional: It is given without its name.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    positional: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the documentation.

    Attributes:
      make: From the content of the files to Markdown.
      files: Names in experiments/results/, without ending.
    """

    make: Callable[..., str]
    files: tuple[str, ...]

    def text(self) -> str:
        """The table, and below it the files with dates and hardware."""
        found = [result(name) for name in self.files]
        return f"{self.make(*found)}\n\n{source(dict(zip(self.files, found, strict=True)))}"


@dataclass(frozen=True)
class Picture:
    """A picture of the documentation.

    Attributes:
      draw: Writes an SVG from the content of the files: (path, *contents).
      files: Names in experiments/results/, without ending.
    """

    draw: Callable[..., None]
    files: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Draw it."""
        self.draw(path, *map(result, self.files))


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
      name: Of the command, `python -m experiments NAME`.
      doc: What it does and how long it takes; the first line is its description.
      run: From the options to what the JSON holds, again after every part of the work.  The last one has an entry in
        `failed` for each part that could not be made.
      options: Of the command line.
      config: Default of --config; None: there is no such option.
      fields: Whether --config.field=value can be given; it can with `config`.
      out: Default of --out, without folder and ending, or that from the options.  None: it writes no JSON.
      show: From the JSON to what is printed at the end.
      tables: Of the documentation, by the name between `<!-- NAME -->` and `<!-- end -->`.
      pictures: Of the documentation, by the name of their file in docs/figures/.
    """

    name: str
    doc: str
    run: Callable[[argparse.Namespace], Iterator[Json]]
    options: tuple[Option, ...] = ()
    config: str | None = None
    fields: bool = False
    out: str | Callable[[argparse.Namespace], str] | None = None
    show: Callable[[Json], str] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
