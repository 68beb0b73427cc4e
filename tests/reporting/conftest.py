"""A headless browser, and pages to open in it."""

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
    """Chromium on one page, with what it logs and what it asks for."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.logged(), self.asked()  # What earlier pages left.
        self.driver.get(page.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script's return."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> Any:
        """Wait until an expression is truthy; its value."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30).until(lambda _: self.run(f"return {script}"))

    def draw_all(self) -> int:
        """Have every figure drawn, as printing does, which is over then; their number."""
        self.run("dispatchEvent(new Event('beforeprint'))")
        ready = ".plot .main-svg"
        self.wait(f"[...document.querySelectorAll('.plot')].every(p => p.querySelector('{ready}'))")
        self.run("dispatchEvent(new Event('afterprint'))")
        return int(self.run("return document.querySelectorAll('.plot').length"))

    def logged(self) -> list[str]:
        """Messages on the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self) -> list[str]:
        """Addresses of what the page loaded since the last call."""
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
    """Skips where there is no chromium, but not where CI promises one."""
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
    """The page of the finished small run, by the real command."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    done = run_command("report", tiny_run.directory, "--out", page, "--json")
    assert done.code == 0, done.err
    assert done.json()["missing"] == {}
    return page


@pytest.fixture(scope="session")
def make_run(tiny_run: Any, tmp_path_factory: Any) -> Callable[..., Path]:
    """Makes a run in a folder of this name, once; settings as the finished small run's but short.

    Folders are read-only by convention.
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
