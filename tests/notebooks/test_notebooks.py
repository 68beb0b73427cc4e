"""Every notebook runs from top to bottom on small real data, and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATA = Path(os.environ.get("RECGRIT_TEST_DATA", ROOT.parent / "shared" / "data"))
MOVIES = DATA / "ml-latest-small" / "ml-latest-small.zip"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert all(cell.get("execution_count") is None for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.skipif(not MOVIES.exists(), reason=f"needs the MovieLens files at {MOVIES}")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = f"""
CONFIG = "../configs/movielens-latest-small.yaml"
RUN_DIR = {str(tmp_path / "run")!r}
OVERRIDES = [
    "data.path={MOVIES}",
    "retriever.epochs=1",
    "embedding.encoder=lsa",
    "retriever.model_dim=32",
    "tokenizer.epochs=5",
    "tokenizer.codebook_size=64",
    "tracking.backend=none",
]
"""
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
    assert notebook.cells[-2].outputs, "the recommendation is shown"
