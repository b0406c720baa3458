"""Headless Chromium, with which `report_picture` and the tests of `lpjax.report`'s page look at the page.

Needs `chromium` and `chromedriver` (Debian: apt-get install -y chromium chromium-driver), and selenium, of the extra
`dev`.
"""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

TOOLS = ("chromium", "chromedriver")
DRAWN = """
    return location.href === arguments[0] && document.readyState === "complete" &&
        [...document.querySelectorAll(".plot")].every((plot) => plot.querySelector(".main-svg"))"""
"""Whether the page is there with its charts: the driver's own waiting ends now and then before."""


def missing() -> str:
    """Which of the two programs are not there, and what to do; empty where both are."""
    names = " and ".join(name for name in TOOLS if not shutil.which(name))
    return names and f"no {names} found: apt-get install -y chromium chromium-driver"


@contextmanager
def started() -> Iterator[Any]:
    """selenium's driver of a new browser, which ends with the block.

    Raises:
      FileNotFoundError: A program is missing.
    """
    chromium, driver = map(shutil.which, TOOLS)
    if not chromium or not driver:
        raise FileNotFoundError(missing())
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as made:
        yield made


def look(browser: Any, page: Path, *, width: int, height: int, theme: str = "light", mobile: bool = False) -> None:
    """Open a page as a reader has it whose window is so large, in CSS pixels, and who prefers that theme.

    Raises:
      TimeoutException: Its charts are not drawn after a minute.
    """
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
    )
    prefer(browser, theme)
    address = page.absolute().as_uri()
    browser.get("about:blank")  # a page that is opened again is not taken for the new one
    browser.get(address)
    WebDriverWait(browser, 60, poll_frequency=0.1).until(lambda _: browser.execute_script(DRAWN, address))


def prefer(browser: Any, theme: str) -> None:
    """theme: "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def errors(browser: Any) -> list[str]:
    """What the page complained of since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def screenshot(browser: Any) -> bytes:
    """The whole page as PNG, beyond the window too."""
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    return base64.b64decode(shot["data"])
