"""The mkdocs hook that adapts links and adds the notebooks to the site.

The hook changes two things.

- Pages link to modules, pipelines and folders of the repository. The site has none of these
  files, so such a link becomes the name of the file.
- The notebooks become pages. `make notebooks` executes them into build/notebooks. A notebook that
  was not executed after its last change is shown without outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import plotly.io
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "build" / "notebooks"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s#]+)(#[^)]*)?\)")
NOT_EXECUTED = "\n\nThis page has no outputs: run `make notebooks` before `make docs`.\n"
PLOTLY = "application/vnd.plotly.v1+json"


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for each notebook, its pictures and the plotly script to the site."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for name, content in render_notebook(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    files.append(File.generated(config, "notebooks/plotly.min.js", content=get_plotlyjs()))
    return files


def render_notebook(path: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook and the files of its pictures, by file name."""
    notebook = nbformat.read(path, as_version=4)
    executed = EXECUTED / path.name
    is_current = executed.exists() and _has_sources(executed, notebook)
    if is_current:
        notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).pop(PLOTLY, None)
            if figure is not None:
                output.data["text/html"] = plotly.io.to_html(
                    plotly.io.from_json(json.dumps(figure), skip_invalid=True),
                    full_html=False,
                    include_plotlyjs="../plotly.min.js",
                )
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": path.stem, "unique_key": path.stem}
    )
    page = text if is_current else text.replace("\n", NOT_EXECUTED, 1)
    return {f"{path.stem}.md": page, **resources["outputs"]}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the text of a page with the links that the site has."""
    source = page.file.abs_src_path
    folder = Path(source).parent if source else NOTEBOOKS
    return LINK.sub(lambda link: _keep_or_name(link, folder), markdown)


def _has_sources(executed: Path, notebook: Any) -> bool:
    """Return whether an executed notebook has the same cells as the committed notebook."""
    cells = nbformat.read(executed, as_version=4).cells
    return [cell.source for cell in cells] == [cell.source for cell in notebook.cells]


def _keep_or_name(link: re.Match[str], folder: Path) -> str:
    """Return the link, or the name of the file if the site has no page for it."""
    target = (folder / link[2]).resolve()
    if target.suffix == ".ipynb" and target.is_file():
        up = "../" * len(folder.relative_to(ROOT / "docs").parts) if folder != NOTEBOOKS else ""
        place = f"notebooks/{target.stem}.md" if folder != NOTEBOOKS else f"{target.stem}.md"
        return f"[{link[1]}]({up}{place})"
    if target.is_file() and target.is_relative_to(ROOT / "docs") and folder != NOTEBOOKS:
        return link[0]
    if not target.exists():
        return link[0]  # The strict build reports a link to a missing file.
    name = f"`{target.relative_to(ROOT)}`"
    return name if link[1].startswith("`") else f"{link[1]} ({name})"
