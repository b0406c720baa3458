"""README's picture of a page of `lpjax.report`: docs/figures/report.png, of the default run.

    python -m experiments.draw_report [--run=DIR] [--out=docs/figures/report.png]     # needs .[dev] and Chromium

Trains `configs/digits.py` as README's first command does, measures the parts of its step (`lpjax.balance`), makes the
page and takes a screenshot of the charts in `SHOWN`; the page has more.  --run: the workdir of such a run that is there
already, to which seconds.json is added if it has none.  About 3 minutes on 2 cores, a few seconds with --run.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from experiments import browser
from lpjax.report.__main__ import write

WIDTH = 1200
SHOWN = ("accuracy-steps", "loss-steps", "violation", "cut-flops-0", "cut-parameters-0", "schedule-0")
"""Of the page's charts; the table of runs and the headings above these stay, too."""

KEEP = """
    const [keys, done] = arguments;
    for (const chart of document.querySelectorAll(".chart")) if (!keys.includes(chart.id)) chart.remove();
    for (const heading of document.querySelectorAll("h2")) {
        const section = [heading];
        while (section.at(-1).nextElementSibling && section.at(-1).nextElementSibling.tagName !== "H2")
            section.push(section.at(-1).nextElementSibling);
        const drawn = section.filter((part) => part.querySelector(".plot"));
        for (const part of section) if (!drawn.length || ![heading, ...drawn].includes(part)) part.remove();
    }
    const plots = [...document.querySelectorAll(".plot")];
    Promise.all(plots.map((plot) => Plotly.Plots.resize(plot))).then(() => done(plots.length));"""


def command(module: str, workdir: Path) -> list[str]:
    """Of the default run, with a module of lpjax."""
    return [sys.executable, "-m", f"lpjax.{module}", "--config=configs/digits.py", f"--workdir={workdir}"]


def picture(driver: Any, page: Path) -> bytes:
    """PNG, of 256 colours, of the charts in `SHOWN`.  Raises ValueError where the page does not have them all."""
    browser.look(driver, page, width=WIDTH, height=900)
    found = driver.execute_async_script(KEEP, SHOWN)
    if found != len(SHOWN):
        raise ValueError(f"{page}: {found} of the charts {', '.join(SHOWN)}; expected all of them")
    small = io.BytesIO()
    with Image.open(io.BytesIO(browser.screenshot(driver))) as image:
        image.convert("RGB").quantize(256).save(small, "png", optimize=True)
    return small.getvalue()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/report.png"))
    args = parser.parse_args(argv)
    with browser.started() as driver, tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "digits"
        if not args.run:
            subprocess.run(command("main", run), check=True)
        if not (run / "seconds.json").exists():
            subprocess.run(command("balance", run), check=True)
        page = Path(folder) / "report.html"
        write([run], page)
        args.out.write_bytes(picture(driver, page))
    print(f"{args.out}, {args.out.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
