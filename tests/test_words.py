"""README, docs, notebooks and docstrings do not contain the words of the list."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Patterns that texts must not contain, each with its replacement.
BANNED = {
    r"\btaken (?:together|near|by (?:people|users|any|nobody))": "interacted with, or clicked",
    r"\b(?:nobody has|people|users|often) taken\b": "interacted with, or clicked",
    r"\btaken items?\b": "interacted with, or clicked",
    r"\brevive[ds]?\b|\breviv(?:al|ing)\b": "dead-code reset",
    r"\bparted\b": "split",
    r"\bso[- ]manieth\b": "every N-th, with N by name",
    r"\bhangs? on\b": "depends on",
    r"(?:^|[.:;]\s+)Likewise\.": "a statement",
    r"(?:^|[.:;]\s+)As above\.": "a statement",
    r"(?:^|[.:;]\s+)Whose \w+\.": "a statement",
    r"(?:^|[.:;]\s+)Of each \w+\.": "a statement",
    r"\b[Ww]hat did it\b": "made the difference",
    r"\bso much (?:is|for)\b": "a statement with a number",
    r"\bsuch as (?:it|they) (?:is|are)\b": "unchanged",
    r"\b(?:lies?|lay) low\b": "is a lower layer",
    r"\bsurer than\b": "narrower intervals",
    r"\b(?:go(?:es|ne)?|went) on with\b": "resume",
    r"\bbe it\b": "or",
    r"\bupkeep\b": "codebook maintenance",
}
# Exempt is a table of results, whose column has the name with which its rows were written.
EXEMPT = {"docs/results/quantizer_study/tables.md"}


def read_texts() -> Iterator[tuple[str, str]]:
    """Yield pages, notebooks, and docstrings of the package, each with its place."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if page.relative_to(ROOT).as_posix() not in EXEMPT:
            yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "markdown":
                yield notebook.relative_to(ROOT).as_posix(), "".join(cell["source"])
    for module in sorted((ROOT / "recgrit").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    name = getattr(node, "name", "")
                    yield f"{module.relative_to(ROOT).as_posix()} {name}", text


@pytest.mark.parametrize("pattern", BANNED)
def test_no_text_has_a_banned_word(pattern: str) -> None:
    regex = re.compile(pattern, re.MULTILINE)
    found = [
        f"{where}: {' '.join(text[max(hit.start() - 60, 0) : hit.end() + 30].split())}"
        for where, text in read_texts()
        for hit in regex.finditer(text)
    ]
    assert not found, f"write: {BANNED[pattern]}\n" + "\n".join(found)


def test_the_list_finds_words_in_pages_and_docstrings() -> None:
    texts = dict(read_texts())
    assert "README.md" in texts
    assert any(where.startswith("recgrit/quantization/grit.py GRITVQ") for where in texts)


def read_docstrings() -> Iterator[tuple[str, str]]:
    """Yield docstrings of classes and functions of the package, each with its place."""
    for module in sorted((ROOT / "recgrit").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            is_named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if is_named and (text := ast.get_docstring(node)):
                yield f"{module.relative_to(ROOT).as_posix()} {node.name}", text


def test_docstrings_begin_with_a_full_statement() -> None:
    fragment = re.compile(r"(?:Likewise|Whose|As above|Of|Its|Which)\b|\S+$")
    found = [
        f"{where}: {first}"
        for where, text in read_docstrings()
        if fragment.match(first := text.split("\n\n")[0])
    ]
    assert not found, "\n".join(found)


def test_arguments_are_described_by_more_than_a_word() -> None:
    found = []
    for where, text in read_docstrings():
        if section := re.search(r"^Args:\n((?: +.*\n?|\n)+)", text, re.MULTILINE):
            for entry in re.split(r"\n(?= {4}\w[\w*, ]*: )", "\n" + section[1]):
                words = entry.split(": ", 1)[-1].split()
                if entry.strip() and len(words) < 2:
                    found.append(f"{where}: {entry.strip()}")
    assert not found, "\n".join(found)
