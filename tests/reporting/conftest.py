"""Fixtures of a headless browser and of pages that it opens."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment


class Browser:
    """Chromium with one page, its console messages and the addresses that it loads."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.logged(), self.requested_urls()  # Discard messages and addresses of earlier pages.
        self.driver.get(page.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script and return its value."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> Any:
        """Wait until an expression is truthy, and return its value."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30).until(lambda _: self.run(f"return {script}"))

    def draw_all(self) -> int:
        """Draw every figure, as printing does, and return the number of figures."""
        self.run("dispatchEvent(new Event('beforeprint'))")
        ready = ".plot .main-svg"
        self.wait(f"[...document.querySelectorAll('.plot')].every(p => p.querySelector('{ready}'))")
        self.run("dispatchEvent(new Event('afterprint'))")
        return int(self.run("return document.querySelectorAll('.plot').length"))

    def logged(self) -> list[str]:
        """Return the console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested_urls(self) -> list[str]:
        """Return the addresses that the page loaded since the last call."""
        entries = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the browser, or skip the test if chromium is missing outside of CI."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        reason = "needs chromium and chromedriver (Debian: chromium chromium-driver) on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield Browser(opened)
    opened.quit()


@pytest.fixture(scope="session")
def tiny_page(tiny_run: Any, run_command: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """Write the page of the finished small run with the real command."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    done = run_command("report", tiny_run.directory, "--out", page, "--json")
    assert done.code == 0, done.err
    assert done.json()["missing"] == {}
    return page


@pytest.fixture(scope="session")
def make_run(tiny_run: Any, tmp_path_factory: Any) -> Callable[..., Path]:
    """Make a run in a folder with a given name, once, with few epochs.

    The other settings are those of the finished small run. Tests only read the folders.
    """
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def make(name: str, *overrides: str) -> Path:
        settings = (
            f"run.dir={folder / name}",
            f"run.cache_dir={folder / 'cache'}",
            "tracking.backend=none",
            "retriever.epochs=1",
            *overrides,
        )
        config = load_config(ExperimentConfig, tiny_run.directory / "config.yaml", settings)
        run_experiment(config)
        return folder / name

    return make
