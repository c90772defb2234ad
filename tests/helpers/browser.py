"""Pages in a real headless Chromium, opened from disk.

Chromium and its driver are found on the PATH (Debian: `apt-get install chromium chromium-driver`).
A conftest.py that imports the fixture `browser` provides it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = "chromium", "chromedriver"
REQUIRED = "VTNPIPE_REQUIRE_BROWSER"  # if set, tests fail without a browser


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """A browser; a test is skipped if the machine has none."""
    chromium, driver = shutil.which(CHROMIUM), shutil.which(DRIVER)
    if chromium is None or driver is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, but there is no {CHROMIUM} or {DRIVER}")
        pytest.skip("Chromium and its driver are not on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    web = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(web)
    finally:
        web.quit()


class Browser:
    """A browser as the tests use it."""

    def __init__(self, web: Any) -> None:
        self.web = web

    def open(self, path: Path, width: int = 1280, *, is_dark: bool = False) -> None:
        """Open a page at a width in pixels."""
        self.web.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.web.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.web.get_log("performance")
        self.web.get(path.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of a script."""
        return self.web.execute_script(script, *arguments)

    def count(self, selector: str) -> int:
        """Return the number of elements."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def bars(self, strip: int) -> list[float]:
        """Return the values of the attention bars of a strip."""
        script = """
            const figure = document.querySelectorAll('.strip[data-attention]')[arguments[0]];
            return [...figure.querySelectorAll('.attention rect')].map(bar => +bar.dataset.value);
        """
        values: list[float] = self.run(script, strip)
        return values

    def choose(self, strip: int, layer: int, head: str) -> None:
        """Choose the layer and the head whose attention a strip shows."""
        script = """
            const figure = document.querySelectorAll('.strip[data-attention]')[arguments[0]];
            const [layer, head] = figure.querySelectorAll('select');
            layer.value = arguments[1];
            head.value = arguments[2];
            layer.dispatchEvent(new Event('change'));
            head.dispatchEvent(new Event('change'));
        """
        self.run(script, strip, str(layer), head)

    @property
    def faults(self) -> list[str]:
        """Messages of the console, and requests to a network."""
        found = [entry["message"] for entry in self.web.get_log("browser")]
        for entry in self.web.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(f"requests {url}")
        return found

    @property
    def overflow(self) -> int:
        """Number of pixels by which the page is wider than its window."""
        root = "document.documentElement"
        return int(self.run(f"return {root}.scrollWidth - {root}.clientWidth"))
