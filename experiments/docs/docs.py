"""Write every table and picture that README.md and docs/ show, from the files in experiments/results/; nothing is run.

A picture is a link to figures/NAME.svg, or any path that ends so, and stands in docs/figures/.  With --check nothing is
written: exit code 1 if a page or a picture is not what would be.  A picture is compared in what it says, as fonts and
paths differ between versions of matplotlib.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.docs import method_picture, pair, schedule_picture
from experiments.harness.experiment import Experiment, Json, Option, Picture, Table
from experiments.registry import MEASURED
from lpjax.errors import BadInput

TABLES: dict[str, Table] = {name: made for e in MEASURED for name, made in e.tables.items()} | pair.TABLES

PICTURES: dict[str, Picture] = {name: made for e in MEASURED for name, made in e.pictures.items()}
PICTURES |= method_picture.PICTURES | schedule_picture.PICTURES

BLOCK = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
DRAWN = re.compile(r"figures/(\w+)\.svg")


def pages(root: Path) -> dict[Path, str]:
    """The pages that show tables, with their text."""
    return {path: path.read_text() for path in (root / "README.md", *sorted((root / "docs").rglob("*.md")))}


def filled(page: Path, text: str, tables: Mapping[str, Table] = TABLES) -> str:
    """A page with its tables as the results have them.

    Raises:
      BadInput: It asks for a table that there is not.
    """

    def block(found: re.Match[str]) -> str:
        name, body = found.groups()
        if body.lstrip().startswith("```"):
            return found[0]
        if name not in tables:
            raise BadInput(f"{page}: <!-- {name} -->: expected the name of a table: {', '.join(sorted(tables))}")
        return f"<!-- {name} -->\n\n{tables[name].text()}\n\n<!-- end -->"

    return BLOCK.sub(block, text)


def said(picture: str) -> list[str]:
    """The texts in an SVG."""
    return re.findall(r"<text[^>]*>(.*?)</text>", picture, re.DOTALL)


def differing(root: Path, write: bool) -> Iterator[Path]:
    """Pages and pictures that are not what they should be, each written first if they are to be."""
    texts = pages(root)
    for page, text in texts.items():
        if (new := filled(page, text)) != text:
            if write:
                page.write_text(new)
            yield page
    shown = sorted({name for text in texts.values() for name in DRAWN.findall(text)} & PICTURES.keys())
    with tempfile.TemporaryDirectory() as folder:
        for name in shown:
            path, new_path = root / "docs/figures" / f"{name}.svg", Path(folder) / f"{name}.svg"
            PICTURES[name].write(new_path)
            new = new_path.read_text()
            if not path.exists() or said(path.read_text()) != said(new):
                if write:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(new)
                yield path


def run(args: argparse.Namespace) -> Iterator[Json]:
    """No JSON; `failed` with --check."""
    found = [str(path) for path in differing(args.root, write=not args.check)]
    for path in found:
        print(f"{path}: {'not what `python -m experiments docs` writes' if args.check else 'written'}", file=sys.stderr)
    yield {"failed": found if args.check else []}


EXPERIMENT = Experiment(
    name="docs",
    doc=__doc__,
    run=run,
    options=(
        Option("check", False, "write nothing; exit code 1 where something would be written"),
        Option("root", Path("."), "the repository's folder"),
    ),
)
