"""The site builds without warnings or external requests, and generated pages are current."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from recgrit.cli import app

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
# References to other sites that a page loads by itself.
LOADED = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?https?:|<link[^>]+href=["']?https?:""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("nbconvert", reason="needs the extra docs")
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


def test_generated_pages_of_the_reference_are_current() -> None:
    pytest.importorskip("griffe", reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_of_commands_has_them_all() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"\n## recgrit {name}\n" in page
    assert "recgrit inspect item" in page
    assert "--include-seen" in page


def test_the_api_shows_signatures_docstrings_and_examples() -> None:
    page = (REFERENCE / "api" / "quantizers.md").read_text(encoding="utf-8")
    assert "normalized_from: int = 1," in page
    assert "- `normalized_from`: First level, from 0, that is normalized." in page
    assert "```pycon\n>>> " in page
    assert "- `QuantizerError`: " in page
    assert ":::" not in page, "nothing that only the site can fill in"


def test_every_page_of_the_api_is_in_its_index() -> None:
    index = (REFERENCE / "api" / "index.md").read_text(encoding="utf-8")
    for page in (REFERENCE / "api").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index


def test_a_docstring_section_that_is_not_rendered_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("griffe", reason="needs the extra docs")
    (tmp_path / "odd.py").write_text(
        'def f():\n    """Do it.\n\n    Receives:\n        int: A.\n    """\n'
    )
    script = (
        "import sys; sys.path.insert(0, 'docs'); import griffe, api_pages; "
        f"package = griffe.load('odd', search_paths=[{str(tmp_path)!r}]); "
        "api_pages._render(package['f'], level=2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "no rendering of the section receives" in done.stderr


def test_the_front_page_has_the_numbers_of_the_readme(site: Path) -> None:
    page = (site / "index.html").read_text()
    row = re.search(r"^\| popularity \| (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    assert f"<td>{row[1]}" in page


def test_results_have_the_numbers_of_the_readme() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "results").glob("*.md"))
    rows = re.findall(
        r"^\|.*(?:recgrit|alone|popularity).*\|", _numbers_of_the_readme(), re.MULTILINE
    )
    assert len(rows) > 3
    for row in rows:
        for number in re.findall(r"\.\d{4}", row):
            assert number in pages, row


def test_links_to_files_outside_the_site_become_their_names(site: Path) -> None:
    page = (site / "explanation" / "grit_vq" / "index.html").read_text()
    assert "<code>recgrit/quantization/radius.py</code>" in page
    assert 'recgrit/quantization/radius.py"' not in page


def test_python_of_the_explanations_runs() -> None:
    blocks = [
        block
        for page in sorted((ROOT / "docs" / "explanation").glob("*.md"))
        for block in re.findall(
            r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
        )
    ]
    assert blocks
    for block in blocks:
        exec(block, {})


def test_the_site_has_a_page_of_each_notebook(site: Path) -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        title = json.loads(notebook.read_text())["cells"][0]["source"][0].strip("# \n")
        assert (
            title.partition(".")[2]
            in (site / "notebooks" / notebook.stem / "index.html").read_text()
        )


def _numbers_of_the_readme() -> str:
    readme = (ROOT / "README.md").read_text()
    return readme.partition("[start:numbers]")[2].partition("[end:numbers]")[0]
