"""Pages in a real headless Chromium, as a reader opens them from disk."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = "chromium", "chromedriver"
REQUIRED = "VTNPIPE_REQUIRE_BROWSER"  # set where it must be there


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """A browser; the test is skipped where there is none."""
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
    """What the tests ask of it."""

    def __init__(self, web: Any) -> None:
        self.web = web

    def open(self, path: Path, width: int = 1280, *, is_dark: bool = False) -> None:
        """Opens a page, at a width in pixels."""
        self.web.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.web.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.web.get_log("performance")
        self.web.get(path.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.web.execute_script(script, *arguments)

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def texts(self, selector: str) -> list[str]:
        """Their texts."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    @property
    def faults(self) -> list[str]:
        """What the console says, and what was asked of a network."""
        found = [entry["message"] for entry in self.web.get_log("browser")]
        for entry in self.web.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(f"asks for {url}")
        return found

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        root = "document.documentElement"
        return int(self.run(f"return {root}.scrollWidth - {root}.clientWidth"))
