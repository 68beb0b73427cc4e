"""The site of the docs builds without a warning, asks nothing of others, and has all commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from recgrit.cli import app

ROOT = Path(__file__).parents[1]
# What a page loads by itself, from elsewhere.
LOADED = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?https?:|<link[^>]+href=["']?https?:""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        build,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = re.sub(r"""<link[^>]+rel=["']?canonical[^>]*>""", "", page.read_text())
        assert not LOADED.search(text), page


def test_the_page_of_commands_has_them_all(site: Path) -> None:
    page = (site / "cli" / "index.html").read_text()
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"<code>recgrit {name}</code>" in page
    assert "recgrit inspect item" in page
    assert "--include-seen" in page


def test_the_reference_shows_signatures_and_docstrings(site: Path) -> None:
    page = (site / "reference" / "quantizers" / "index.html").read_text()
    assert "normalized_from" in page
    assert "First level, from 0, that is normalized." in page
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page, "examples are code"


def test_the_front_page_has_the_numbers_of_the_readme(site: Path) -> None:
    page = (site / "index.html").read_text()
    row = re.search(r"^\| popularity \| (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    assert f"<td>{row[1]}" in page


def test_links_to_files_outside_the_site_become_their_names(site: Path) -> None:
    page = (site / "quantizer" / "index.html").read_text()
    assert "<code>recgrit/quantization/radius.py</code>" in page
    assert 'href="../recgrit/' not in page
