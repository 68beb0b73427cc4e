"""Write the pages of the Python API as Markdown, from signatures and Google-style docstrings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
LINE_LENGTH = 90


@dataclass(frozen=True)
class ApiPage:
    """A page of the API reference.

    Args:
        title: Heading of the page.
        introduction: Markdown below the heading.
        names: Dotted names of modules, classes and functions, in the order of the page.
    """

    title: str
    introduction: str
    names: tuple[str, ...]


PAGES = {
    "run.md": ApiPage(
        "Runs",
        "A run is a folder. `Run` opens it and reads each part when it is asked for.",
        (
            "recgrit.frames.fit",
            "recgrit.runs.Run",
            "recgrit.recommender.Recommender",
            "recgrit.config.load_config",
            "recgrit.experiment.ExperimentConfig",
            "recgrit.pipeline.run_experiment",
            "recgrit.pipeline.RunResult",
            "recgrit.similar.SimilarItems",
            "recgrit.tuning.study.tune",
            "recgrit.tuning.study.TuneResult",
        ),
    ),
    "models.md": ApiPage(
        "Models",
        "All models implement one contract: [how to write a model](../../how-to/own_model.md).",
        (
            "recgrit.models.model.Model",
            "recgrit.models.model.CatalogueInputs",
            "recgrit.models.model.Fitted",
            "recgrit.models.model.FitSummary",
            "recgrit.models.registry.find_model",
            "recgrit.ranking.Ranker",
            "recgrit.ranking.ScoreRanker",
        ),
    ),
    "data.md": ApiPage(
        "Data",
        "These types pass between the stages. They are frozen and validated when they are built. "
        "Each type has `save` and `load`.",
        (
            "recgrit.data.interactions.Interactions",
            "recgrit.data.items.ItemTable",
            "recgrit.data.splits.SequenceSplit",
            "recgrit.embedding.embeddings.Embeddings",
            "recgrit.data.recommendations.Recommendations",
        ),
    ),
    "quantizers.md": ApiPage(
        "Quantizers",
        "All quantizers have the interface of `Quantizer`. "
        "[GRIT-VQ](../../explanation/grit_vq.md) explains the method, and "
        "[a quantizer of your own](../../how-to/own_quantizer.md) shows how to use it in a model.",
        (
            "recgrit.quantization.grit.GRITVQ",
            "recgrit.quantization.residual.ResidualGRITVQ",
            "recgrit.quantization.quantizer.Quantizer",
            "recgrit.quantization.quantizer.Quantized",
            "recgrit.quantization.baselines.build_quantizer",
            "recgrit.quantization.radius.Radius",
            "recgrit.quantization.radius.surrogate_radius",
            "recgrit.quantization.transform.IntegratedTransform",
        ),
    ),
    "semantic_ids.md": ApiPage(
        "Semantic IDs",
        "The table holds the IDs of all items. The trie is the tree that the IDs form.",
        (
            "recgrit.semantic_ids.table.SemanticIdTable",
            "recgrit.semantic_ids.trie.Trie",
            "recgrit.semantic_ids.trie.build_trie",
        ),
    ),
    "evaluation.md": ApiPage(
        "Evaluation",
        "These functions take lists and return numbers. They need no model and no torch.",
        (
            "recgrit.evaluation.metrics",
            "recgrit.evaluation.report.EvaluationReport",
            "recgrit.evaluation.report.evaluate_recommendations",
            "recgrit.evaluation.report.describe_search",
            "recgrit.evaluation.report.describe_ties",
            "recgrit.evaluation.foreign_lists.read_lists",
            "recgrit.evaluation.paired.paired_difference",
            "recgrit.evaluation.paired.compare_ranks",
            "recgrit.evaluation.lists",
        ),
    ),
    "reporting.md": ApiPage(
        "Reports",
        "`recgrit report` and `recgrit compare` call these functions: "
        "[how to compare runs](../../how-to/compare.md).",
        (
            "recgrit.reporting.contents.gather_contents",
            "recgrit.reporting.page.render_report",
            "recgrit.reporting.comparison.compare_runs",
            "recgrit.reporting.compare_page.render_comparison",
            "recgrit.reporting.markdown.render_markdown",
        ),
    ),
    "serving.md": ApiPage(
        "Serving",
        "Bundles and the MLflow model: [how to serve them](../../how-to/serve.md).",
        (
            "recgrit.serving.writing.export_bundle",
            "recgrit.serving.bundle.Bundle",
            "recgrit.serving.append.append_items",
            "recgrit.serving.append.Appended",
            "recgrit.serving.pyfunc.save_pyfunc",
            "recgrit.serving.pyfunc.BundleModel",
        ),
    ),
    "errors.md": ApiPage(
        "Errors",
        "Mistakes that a caller can correct raise a subclass of `RecgritError`. The message says "
        "what was expected, what was found, where, and what to do next.",
        ("recgrit.errors",),
    ),
}

INDEX = """# Python API

These are the names to import. Anything that is not listed here may change without notice.

| to do what | page |
|---|---|
| open a finished run, recommend, run stages from a script | [Runs](run.md) |
| read what passes between stages: interactions, items, splits, lists | [Data](data.md) |
| use GRIT-VQ or another quantizer in your own model | [Quantizers](quantizers.md) |
| write a model of your own | [Models](models.md) |
| look up IDs and items, walk the trie | [Semantic IDs](semantic_ids.md) |
| compute metrics, compare models with intervals, measure coverage | [Evaluation](evaluation.md) |
| build the HTML pages from a script | [Reports](reporting.md) |
| carry a model to a service, add and remove items | [Serving](serving.md) |
| catch mistakes | [Errors](errors.md) |

`import recgrit` loads no large library. torch, polars and mlflow are imported with the modules
that need them. All functions have type annotations.
"""
NOTICE = "<!-- Generated from signatures and docstrings: python docs/generate.py -->"


def describe_api() -> dict[str, str]:
    """Return the Markdown of all API pages, by file name."""
    package = griffe.load("recgrit", search_paths=[ROOT], docstring_parser="google")
    pages = {name: _render_page(page, package) for name, page in PAGES.items()}
    return {"index.md": f"{INDEX}\n{NOTICE}\n"} | pages


def _render_page(page: ApiPage, package: griffe.Object) -> str:
    blocks = [f"# {page.title}", NOTICE, page.introduction]
    for name in page.names:
        blocks += _render(package[name.removeprefix("recgrit.")], level=2)
    return "\n\n".join(blocks) + "\n"


def _render(found: Any, *, level: int) -> list[str]:
    """Return the Markdown blocks of one object: heading, signature, docstring, public members."""
    members = [member for member in found.members.values() if _is_public(member)]
    members.sort(key=lambda member: member.lineno or 0)
    blocks = [f"{'#' * level} {found.name if level > 2 else found.path}"]
    if not found.is_module:
        blocks.append(f"```python\n{_show_signature(found)}\n```")
    blocks += _render_docstring(found)
    if level == 2:
        for member in members:
            blocks += _render(member, level=3)
    return blocks


def _is_public(member: Any) -> bool:
    """Return whether a member is listed on the page."""
    if member.is_alias or member.name.startswith("_") or member.is_attribute:
        return False
    return member.docstring is not None


def _show_signature(found: Any) -> str:
    if found.is_attribute:
        return f"{found.name}: {found.annotation}"
    if found.is_function and "property" in found.labels:
        return f"{found.name}: {found.returns}"
    one_line = str(found.signature())
    if len(one_line) <= LINE_LENGTH:
        return one_line
    start, _, rest = one_line.partition("(")
    inside, _, end = rest.rpartition(")")
    parameters = re.split(r", (?![^\[\](){}]*[\])}])", inside)
    return "\n".join([f"{start}(", *(f"    {parameter}," for parameter in parameters), f"){end}"])


def _render_docstring(found: Any) -> list[str]:
    """Return the sections of a docstring as Markdown blocks, with examples as code."""
    docstring = found.docstring
    if docstring is None:
        return []
    docstring.value = re.sub(r"^Example:$", "Examples:", docstring.value, flags=re.MULTILINE)
    options = {"warnings": False, "returns_named_value": False}
    blocks: list[str] = []
    for section in docstring.parse("google", **options):
        match section.kind.value:
            case "text":
                blocks.append(_plain(section.value))
            case "parameters" | "attributes" | "other parameters":
                title = "Attributes" if section.kind.value == "attributes" else "Parameters"
                rows = [f"- `{part.name}`: {_one_line(part.description)}" for part in section.value]
                blocks.append(f"{title}:\n\n" + "\n".join(rows))
            case "returns" | "yields":
                rows = [_one_line(part.description) for part in section.value]
                blocks.append(f"{section.kind.value.capitalize()}: " + " ".join(rows))
            case "raises":
                rows = [f"- `{p.annotation}`: {_one_line(p.description)}" for p in section.value]
                blocks.append("Raises:\n\n" + "\n".join(rows))
            case "examples":
                for kind, value in section.value:
                    is_code = kind.value == "examples"
                    blocks.append(f"```pycon\n{value}\n```" if is_code else _plain(value))
            case "admonition":
                blocks.append(f"{section.title or 'Note'}: {_one_line(section.value.contents)}")
            case other:
                raise ValueError(f"no rendering of the section {other} of {found.path}")
    return blocks


def _plain(text: str) -> str:
    """Convert text of a docstring to Markdown. Double backticks and reST roles become code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _one_line(text: str) -> str:
    return " ".join(_plain(text).split())
