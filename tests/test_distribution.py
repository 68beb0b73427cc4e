"""The wheel works outside the checkout. CITATION.cff, CI and the bug form are correct."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

import recgrit

ROOT = Path(__file__).parents[1]
IN_A_CHECKOUT = (".git", ".venv", "build", "dist", "runs", "downloads", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, built from the source distribution, and return its command."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs the package build, of the extra dev")
    folder = tmp_path_factory.mktemp("distribution")
    shutil.copytree(
        ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*IN_A_CHECKOUT)
    )
    # An isolated build would download setuptools.
    _run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        "../dist",
        cwd=folder / "source",
        sees_checkout=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "fresh", system_site_packages=True, with_pip=False)
    python = folder / "fresh" / "bin" / "python"
    # A nested virtual environment sees packages of the system but not of this environment, so the
    # test adds them.
    (site,) = (folder / "fresh" / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join(ours))
    _run(
        python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel), cwd=folder
    )
    return folder / "fresh" / "bin" / "recgrit"


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    version = _run(installed, "--version", cwd=tmp_path)
    assert version.strip() == f"recgrit {recgrit.__version__}"
    assert "recommend" in _run(installed, "--help", cwd=tmp_path)
    where = "import recgrit; print(recgrit.__file__)"
    place = _run(installed.with_name("python"), "-c", where, cwd=tmp_path)
    assert str(installed.parents[1]) in place, "not that of the checkout"


@pytest.mark.slow
def test_the_wheel_has_configurations_and_reads_data(installed: Path, tmp_path: Path) -> None:
    _run(installed, "init", "movielens-100k", "--out", "mine.yaml", cwd=tmp_path)
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["data"]
    rows = ["user_id,item_id,timestamp"]
    rows += [f"u{u},i{(u + k) % 7},{1_000_000_000 + 60 * k}" for u in range(8) for k in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    out = _run(
        *(installed, "prepare", "mine.yaml", "data.source=table", "data.path=log.csv"),
        *("run.dir=run", "data.min_item_interactions=1", "--json"),
        cwd=tmp_path,
    )
    assert json.loads(out.splitlines()[-1])
    assert (tmp_path / "run" / "data" / "interactions.parquet").is_file()


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == recgrit.__version__
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2602.01140"


def test_the_workflow_calls_the_ci_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    commands = [step.get("run") for step in workflow["jobs"]["ci"]["steps"]]
    assert ".ci/run" in commands
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_bug_report_form_requires_the_run() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    fields = {field["id"]: field for field in form["body"]}
    assert "recgrit inspect run --json" in fields["run"]["attributes"]["label"]
    assert fields["run"]["validations"]["required"]


def _run(*command: str | Path, cwd: Path, sees_checkout: bool = False) -> str:
    """Run a command and return what it printed."""
    hidden = set() if sees_checkout else {"PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
