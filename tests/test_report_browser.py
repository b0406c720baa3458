"""The page of runs in a browser, Debian's Chromium: every chart shows its data, and the switches switch.

Without a browser these tests are skipped, or fail where LPJAX_BROWSER=required, as in `.ci/run`.  Screenshots go to the
folder LPJAX_SCREENSHOTS, or to pytest's own.
"""

import os
import shutil
from pathlib import Path

import pytest
from run_folders import finished, train_line, write_lines
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from experiments.docs import report_picture
from lpjax.report.__main__ import write

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
THEMES = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}
DRAWN = """
    return [...document.querySelectorAll(".plot")].map((plot) => ({
        title: plot.getAttribute("aria-label"),
        lines: plot.querySelectorAll(".scatterlayer .trace path.js-line, .scatterlayer .trace path.point").length,
        bars: plot.querySelectorAll(".barlayer .point path").length,
        ticks: plot.querySelectorAll(".xtick").length,
    }))"""
OVERLAPS = """
    const box = (plot, what) => plot.querySelector(what)?.getBoundingClientRect();
    return [...document.querySelectorAll(".plot")].filter((plot) => {
        const legend = box(plot, ".legend"), title = box(plot, ".xtitle"), axis = box(plot, ".xaxislayer-above");
        const outside = legend && legend.bottom > plot.getBoundingClientRect().bottom + 1;
        return outside || (legend && [title, axis].some((other) => other && other.bottom > legend.top + 1));
    }).map((plot) => plot.getAttribute("aria-label"))"""


@pytest.fixture(scope="module")
def browser():
    if not all(map(shutil.which, ("chromium", "chromedriver"))) and os.environ.get("LPJAX_BROWSER") != "required":
        pytest.skip("no chromium and chromedriver found: apt-get install -y chromium chromium-driver")
    with report_picture.browser() as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of one run, and of three beside each other, one of them killed at once."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        finished(folder / "layer_parallel"),
        finished(folder / "serial", method="serial", seed=1),
        write_lines(folder / "killed", [train_line(step) for step in range(1, 30)]),
    ]
    write(runs[:1], folder / "one.html")
    write(runs, folder / "three.html")
    return folder


def prefer(browser, theme: str) -> None:
    """theme: "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def errors(browser) -> list[str]:
    """What the page complained of since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def look(browser, page: Path, size: str = "desk", theme: str = "light") -> None:
    """Open a page as a reader with such a screen has it."""
    width, height = SIZES[size]
    prefer(browser, theme)
    report_picture.look(browser, page, width=width, height=height, mobile=size == "phone")


def until(browser, condition) -> None:
    WebDriverWait(browser, 10, poll_frequency=0.1).until(lambda _: condition())


def traces(browser, chart: str) -> list[dict]:
    script = """
        return document.querySelector(arguments[0]).data.map((trace) => ({
            name: trace.name,
            run: trace.meta?.run ?? null,
            visible: trace.visible ?? true,
        }))"""
    return browser.execute_script(script, f"#{chart} .plot")


@pytest.mark.parametrize("name, size, theme", [("one", "phone", "dark"), ("three", "desk", "light")])
def test_every_chart_shows_its_data(browser, pages, name, size, theme, tmp_path):
    look(browser, pages / f"{name}.html", size, theme)
    folder = Path(os.environ.get("LPJAX_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{size}-{theme}.png").write_bytes(report_picture.screenshot(browser))
    drawn = browser.execute_script(DRAWN)
    assert len(drawn) >= 15
    assert not [chart for chart in drawn if not chart["lines"] + chart["bars"] or not chart["ticks"]]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size][0]
    assert not browser.execute_script(OVERLAPS)
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == THEMES[theme]
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not errors(browser)


def test_a_run_is_switched_off_and_on_in_all_charts(browser, pages):
    look(browser, pages / "three.html")
    before = {chart: traces(browser, chart) for chart in ("accuracy-steps", "violation", "penalty")}
    box = browser.find_element(By.CSS_SELECTOR, "input[data-run='0']")
    box.click()
    for chart in before:
        until(browser, lambda chart=chart: {t["run"] for t in traces(browser, chart) if t["visible"]}.isdisjoint({0}))
        assert [t for t in traces(browser, chart) if t["run"] != 0] == [t for t in before[chart] if t["run"] != 0]
    box.click()
    until(browser, lambda: {chart: traces(browser, chart) for chart in before} == before)
    assert not errors(browser)
