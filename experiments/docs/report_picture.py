"""The picture report.png: a page of `lpjax.report`, of the default run; needs .[dev], chromium and chromedriver.

Trains `configs/digits.py` (unless --run is the workdir of such a run), measures the parts of its step, makes the page
and takes a screenshot of some charts.  About 3 minutes on 2 cores.
"""

import base64
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from experiments.harness import runs
from experiments.harness.experiment import Call, Experiment, Json
from lpjax.report.__main__ import write

WIDTH = 1200
SHOWN = ("accuracy-steps", "loss-steps", "violation", "cut-flops-0", "cut-parameters-0", "schedule-0")
"""Of the page's charts; the table of runs and the headings above these stay, too."""

DRAWN = """
    return location.href === arguments[0] && document.readyState === "complete" &&
        [...document.querySelectorAll(".plot")].every((plot) => plot.querySelector(".main-svg"))"""
"""Whether the page is there with its charts: the driver's own waiting ends now and then before."""

KEEP = """
    const [keys, done] = arguments;
    for (const chart of document.querySelectorAll(".chart")) if (!keys.includes(chart.id)) chart.remove();
    for (const heading of document.querySelectorAll("h2")) {
        const section = [heading], next = () => section.at(-1).nextElementSibling;
        while (next() && next().tagName !== "H2") section.push(next());
        const drawn = section.filter((part) => part.querySelector(".plot"));
        for (const part of section) if (!drawn.length || ![heading, ...drawn].includes(part)) part.remove();
    }
    const plots = [...document.querySelectorAll(".plot")];
    Promise.all(plots.map((plot) => Plotly.Plots.resize(plot))).then(() => done(plots.length));"""


@contextmanager
def browser() -> Iterator[Any]:
    """selenium's driver of a new headless Chromium, which ends with the block."""
    chromium, driver = map(shutil.which, ("chromium", "chromedriver"))
    if not chromium or not driver:
        raise FileNotFoundError("no chromium and chromedriver found: apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as made:
        yield made


def look(driver: Any, page: Path, *, width: int, height: int, mobile: bool = False) -> None:
    """Open a page in a window of a size in CSS pixels, and wait up to a minute for its charts."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    address = page.absolute().as_uri()
    driver.get("about:blank")  # a page that is opened again is not taken for the new one
    driver.get(address)
    WebDriverWait(driver, 60, poll_frequency=0.1).until(lambda _: driver.execute_script(DRAWN, address))


def screenshot(driver: Any) -> bytes:
    """The whole page as PNG, beyond the window too."""
    return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"])


def charts(driver: Any, page: Path) -> bytes:
    """PNG, of 256 colours, of the charts in `SHOWN`."""
    look(driver, page, width=WIDTH, height=900)
    if (found := driver.execute_async_script(KEEP, SHOWN)) != len(SHOWN):
        raise ValueError(f"{page}: {found} of the charts {', '.join(SHOWN)}; expected all of them")
    small = io.BytesIO()
    with Image.open(io.BytesIO(screenshot(driver))) as image:
        image.convert("RGB").quantize(256).save(small, "png", optimize=True)
    return small.getvalue()


def run(call: Call, run: str = "", picture: Path = Path("docs/figures/report.png")) -> Iterator[Json]:
    """No JSON; the parts that failed."""
    with browser() as driver, tempfile.TemporaryDirectory() as folder:
        workdir, page = Path(run or f"{folder}/digits"), Path(folder) / "report.html"
        words = ["--config=configs/digits.py", f"--workdir={workdir}"]
        todo = ["main"] * (not run) + ["balance"] * (not (workdir / "seconds.json").exists())
        if not (failed := [module for module in todo if not runs.call(module, words)]):
            write([workdir], page)
            picture.write_bytes(charts(driver, page))
    yield {"failed": failed}


EXPERIMENT = Experiment(run)
