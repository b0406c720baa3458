"""The picture report.png: a page of `lpjax.report`, of the default run; needs .[dev] and Chromium.

Trains `configs/digits.py`, measures the parts of its step (`lpjax.balance`), makes the page and takes a screenshot of
some charts.  --run: the workdir of such a run that is there already, to which seconds.json is added if it has none.
About 3 minutes on 2 cores, a few seconds with --run.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.docs import browser
from experiments.harness.experiment import Experiment, Json, Option
from experiments.harness.runs import call
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


def picture(driver: Any, page: Path) -> bytes:
    """PNG, of 256 colours, of the charts in `SHOWN`.

    Raises:
      ValueError: The page does not have them all.
    """
    browser.look(driver, page, width=WIDTH, height=900)
    found = driver.execute_async_script(KEEP, SHOWN)
    if found != len(SHOWN):
        raise ValueError(f"{page}: {found} of the charts {', '.join(SHOWN)}; expected all of them")
    small = io.BytesIO()
    with Image.open(io.BytesIO(browser.screenshot(driver))) as image:
        image.convert("RGB").quantize(256).save(small, "png", optimize=True)
    return small.getvalue()


def run(args: argparse.Namespace) -> Iterator[Json]:
    """No JSON; the parts that failed."""
    with browser.started() as driver, tempfile.TemporaryDirectory() as folder:
        workdir = Path(args.run or f"{folder}/digits")
        words = ["--config=configs/digits.py", f"--workdir={workdir}"]
        todo = ["main"] * (not args.run) + ["balance"] * (not (workdir / "seconds.json").exists())
        failed = [module for module in todo if not call(module, words)]
        if not failed:
            page = Path(folder) / "report.html"
            write([workdir], page)
            args.picture.write_bytes(picture(driver, page))
            print(f"{args.picture}, {args.picture.stat().st_size / 1e3:.0f} kB")
    yield {"failed": failed}


EXPERIMENT = Experiment(
    name="report_picture",
    doc=__doc__,
    run=run,
    options=(
        Option("run", None, "workdir of a run that is there"),
        Option("picture", Path("docs/figures/report.png"), "the file"),
    ),
)
