"""Write every table and picture that README.md and docs/ show, from the files in experiments/results/; nothing is run.

A picture is a link to figures/NAME.svg, or any path that ends so, and stands in docs/figures/.  With --check nothing is
written: exit code 1 if a page or a picture is not what would be.  A picture is compared in what it says, as fonts and
paths differ between versions of matplotlib.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.accuracy import accuracy, compare
from experiments.checks import kill_loop, mesh_agreement
from experiments.docs import pair, pictures
from experiments.harness.experiment import Call, Experiment, Json, Table, result
from experiments.predict import scale, scale_check, tradeoff
from experiments.speed import compile_time, feed_rate, memory, references, speedup
from lpjax.errors import BadInput

MODULES = (accuracy, compare, speedup, references, memory, compile_time, feed_rate, scale, scale_check, tradeoff)
MEASURED = tuple(module.EXPERIMENT for module in (*MODULES, kill_loop, mesh_agreement))
TABLES: dict[str, Table] = {name: made for e in MEASURED for name, made in e.tables.items()} | pair.TABLES
PICTURES = {name: made for e in MEASURED for name, made in e.pictures.items()} | pictures.PICTURES


def filled(page: Path, text: str, tables: Mapping[str, Table] = TABLES) -> str:
    """A page with its tables as the results have them; BadInput where it asks for one that there is not."""

    def block(found: re.Match[str]) -> str:
        name, body = found.groups()
        if body.lstrip().startswith("```"):
            return found[0]
        if name not in tables:
            raise BadInput(f"{page}: <!-- {name} -->: expected the name of a table: {', '.join(sorted(tables))}")
        return f"<!-- {name} -->\n\n{tables[name].text()}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n(.*?)<!-- end -->", block, text, flags=re.DOTALL)


def said(picture: str) -> list[str]:
    """The texts in an SVG."""
    return re.findall(r"<text[^>]*>(.*?)</text>", picture, re.DOTALL)


def differing(root: Path, write: bool) -> Iterator[Path]:
    """Pages and pictures that are not what they should be, each written first if they are to be."""
    texts = {path: path.read_text() for path in (root / "README.md", *sorted((root / "docs").rglob("*.md")))}
    made = {page: filled(page, text) for page, text in texts.items()}
    changed = {page: text for page, text in made.items() if text != texts[page]}
    shown = {name for text in texts.values() for name in re.findall(r"figures/(\w+)\.svg", text)} & PICTURES.keys()
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(shown):
            path, drawn = root / f"docs/figures/{name}.svg", Path(folder) / f"{name}.svg"
            draw, files = PICTURES[name]
            draw(drawn, *map(result, files))
            if not path.exists() or said(path.read_text()) != said(drawn.read_text()):
                changed[path] = drawn.read_text()
    for path, text in changed.items():
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        yield path


def run(call: Call, check: bool = False, root: Path = Path(".")) -> Iterator[Json]:
    """No JSON; `failed` with --check."""
    found = [str(path) for path in differing(root, write=not check)]
    for path in found:
        print(f"{path}: {'not what `python -m experiments docs` writes' if check else 'written'}", file=sys.stderr)
    yield {"failed": found if check else []}


EXPERIMENT = Experiment(run)
