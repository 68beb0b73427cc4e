"""The main job as a file: the same call, the same results as the command."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.runs import Run

if TYPE_CHECKING:
    FinishedRun = Any

FILE = Path(__file__).parents[2] / "pipelines" / "end_to_end.py"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("end_to_end", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_main_returns_the_run_folder(
    pipeline: ModuleType, new_config: Callable[..., Path], tmp_path: Path, tiny_run: FinishedRun
) -> None:
    path = pipeline.main(load_config(ExperimentConfig, new_config()))
    assert path == tmp_path / "runs" / "new"
    assert Run(path).reports["test"].metrics() == pytest.approx(tiny_run.result.json()["test"])


def test_it_goes_on_where_the_command_was(pipeline: ModuleType, copied_run: Path) -> None:
    before = (copied_run / "retriever" / "manifest.json").read_bytes()
    overrides = [f"run.dir={copied_run}"]
    config = load_config(ExperimentConfig, copied_run / "config.yaml", overrides)
    assert pipeline.main(config) == copied_run
    assert (copied_run / "retriever" / "manifest.json").read_bytes() == before


def test_as_a_script(tiny_run: FinishedRun) -> None:
    done = subprocess.run(
        [sys.executable, str(FILE), str(tiny_run.directory / "config.yaml")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tiny_run.directory)
    assert done.stderr.count("up to date") == 6
