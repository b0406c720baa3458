"""What an experiment says of itself."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.markdown import source

Json = dict[str, Any]

RESULTS = Path(__file__).parent.parent / "results"


def result(name: str) -> Json:
    """A file of experiments/results/, by its name without ending."""
    return json.loads((RESULTS / f"{name}.json").read_text())


class Call(NamedTuple):
    """How an experiment was called: provenance (command, date, commit, hardware, versions), what --config.field=value
    sets, the config file (empty where the experiment has none), and the JSON file."""

    made: Json
    fields: Json
    config: str
    out: Path


class Table(NamedTuple):
    """A table of the documentation: `make` gets the content of the files of these names in experiments/results/."""

    make: Callable[..., str]
    files: tuple[str, ...]

    def text(self) -> str:
        """The table, and below it the files with dates and hardware."""
        found = {name: result(name) for name in self.files}
        return f"{self.make(*found.values())}\n\n{source(found)}"


Picture = tuple[Callable[..., None], tuple[str, ...]]
"""A picture of the documentation: what draws it, from a path for the SVG and the content of files, and their names."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: its name is its module's, its description the module's docstring.

    Attributes:
      run: From a `Call` and options to what the JSON holds, again after every part of the work; `failed` has an entry
        for each part that could not be made.  The options are its other parameters: see `command.OPTIONS`.
      config: Default of --config; empty: only --config.field=value can be given; None: neither.
      out: The JSON's name, without folder and ending; "{option}" is an option's value.  None: it writes no JSON.
      show: From the JSON to what is printed at the end.
      tables: Of the documentation, by the name between `<!-- NAME -->` and `<!-- end -->`.
      pictures: Of the documentation, by the name of their file in docs/figures/.
    """

    run: Callable[..., Iterator[Json]]
    config: str | None = None
    out: str | None = None
    show: Callable[[Json], str] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the command, `python -m experiments NAME`."""
        return self.run.__module__.rpartition(".")[2]

    @property
    def doc(self) -> str:
        """What it does, and how long it takes."""
        return sys.modules[self.run.__module__].__doc__ or ""
