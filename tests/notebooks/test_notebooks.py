"""Execute every notebook on small real data, and check that it is committed without outputs.

The notebooks assert their own claims, so a complete execution is the test.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATA = Path(os.environ.get("RECGRIT_TEST_DATA", ROOT.parent / "shared" / "data"))
MOVIES = DATA / "ml-latest-small" / "ml-latest-small.zip"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one run folder for all notebooks, so later ones find finished stages up to date."""
    return tmp_path_factory.mktemp("notebooks") / "run"


@each_notebook
def test_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert all(cell.get("execution_count") is None for cell in notebook.cells)


@each_notebook
def test_files_it_names_are_there(path: Path) -> None:
    text = "\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
    )
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / name).is_file(), name
    for name in re.findall(r"`((?:docs|pipelines)/[^`]+)`", text):
        assert (ROOT / name).is_file(), name


@each_notebook
def test_runs_from_top_to_bottom(
    path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECGRIT_NOTEBOOK_SIZE", "small")
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if "OVERRIDES" in parameters.source:
        if not MOVIES.exists():
            pytest.skip(f"needs the MovieLens files at {MOVIES}; see RECGRIT_TEST_DATA")
        parameters.source += f"\nRUN_DIR = {str(run_dir)!r}"
        parameters.source += f"\nOVERRIDES = ['data.path={MOVIES}']"
    assert any("assert " in cell.source for cell in notebook.cells), "it checks what it claims"
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(path.parent))
    warnings = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr" and "Warning" in output.text
    ]
    assert warnings == []
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2, "it shows what it tells"
