"""The HTML page about a run: contents and figures in one self-contained file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import recgrit
from recgrit.reporting.contents import EvaluationContents, RunContents
from recgrit.reporting.figures import PALETTE, build_figures, color_models
from recgrit.reporting.scores import ModelScores, Score, headline_k, metric_title
from recgrit.reporting.tree import IdTree


@dataclass(frozen=True)
class Bar:
    """One model's bar in a card of the page.

    Args:
        model: Name of the model on the page.
        score: Score of the model.
        color: Colour of the bar.
        left: Position of the mean, in percent of the card's width.
        low: Position of the interval's lower end, in percent of the card's width.
        high: Position of the interval's upper end, in percent of the card's width.
    """

    model: str
    score: Score
    color: str
    left: float
    low: float
    high: float


@dataclass(frozen=True)
class Card:
    """A card with one headline metric of all models.

    Args:
        title: Title of the metric, such as ``Recall@10``.
        note: Which targets and lists the metric is measured on.
        bars: One bar per model, the run's own model first.
        ratio: Score of the run's own model divided by that of the best baseline. None if there is
            no baseline, or if the best baseline has zero.
        best: Name of the best baseline.
    """

    title: str
    note: str
    bars: tuple[Bar, ...]
    ratio: float | None
    best: str


def render_report(contents: RunContents) -> str:
    """Return the HTML page about one run."""
    data: dict[str, Any] = {"figures": build_figures(contents)}
    if contents.ids is not None:
        items = contents.ids.items
        data["tree"] = pack_tree(contents.ids.tree)
        data["items"] = {
            "ids": items.item_ids,
            "titles": items.titles,
            "codes": items.codes,
            "counts": items.counts,
        }
    return render(
        "report.html.jinja",
        data,
        title=contents.name,
        run=contents,
        cards=make_cards(contents.evaluation) if contents.evaluation is not None else (),
    )


def render(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """Fill a template with values, and with ``data`` that its scripts read as JSON."""
    environment = Environment(
        loader=PackageLoader("recgrit.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": lambda value: "" if value is None else f"{value:,}",
        "count": count_things,
        "score": lambda value: format_number(value, ".4f"),
        "percent": lambda value: format_number(value, ".1%"),
        "metric": metric_title,
        "chips": split_chips,
    }
    environment.filters |= filters
    loader = environment.loader
    assert loader is not None
    return environment.get_template(template).render(
        # These texts are not escaped: they are our own code and plotly's, without user input.
        style=Markup(loader.get_source(environment, "style.css")[0]),
        script=Markup(loader.get_source(environment, "page.js")[0]),
        plotly=Markup(plotly.offline.get_plotlyjs()),
        data=embed_json(data),
        version=recgrit.__version__,
        palette=PALETTE,
        **values,
    )


def count_things(number: int, thing: str) -> str:
    """Return a number with a noun, in the plural if the number is not one.

    Example:
        >>> count_things(1, "item"), count_things(1200, "item")
        ('1 item', '1,200 items')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def format_number(value: float | None, form: str) -> str:
    """Return a formatted number, or a dash for None and NaN.

    Example:
        >>> format_number(0.25, ".1%"), format_number(float("nan"), ".1%")
        ('25.0%', '–')
    """
    return "–" if value is None or math.isnan(value) else format(value, form)


def embed_json(values: Any) -> Markup:
    """Return values as JSON that is safe inside a script element. NaN becomes null."""
    # Without this character, no string can begin an HTML tag.
    text = json.dumps(_without_nan(values), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def split_chips(semantic_id: str) -> list[str]:
    """Return the codes of a semantic ID in text form as a list of short texts.

    Example:
        >>> split_chips("<a_12><b_7>")
        ['a12', 'b7']
    """
    return [code.replace("_", "") for code in semantic_id.strip("<>").split("><") if code]


def pack_tree(tree: IdTree) -> dict[str, Any]:
    """Return the nodes of a tree as JSON columns, which take half the size of a list of objects."""
    return {
        "colors": [PALETTE[place % len(PALETTE)] for place in range(len(tree.colors))],
        **{
            name: [getattr(node, name) for node in tree.nodes]
            for name in ("parent", "prefix", "label", "num_items", "color", "typical", "examples")
        },
    }


def make_cards(evaluation: EvaluationContents) -> tuple[Card, ...]:
    """Return the cards of the headline metrics on test.

    There are cards for all items ranked and for seen items filtered out. If many targets are
    repeats, cards for the targets that are not repeats come first.
    """
    tests = [found for found in evaluation.scores if found.key.split == "test"]
    colors = color_models(evaluation.scores)
    k = headline_k(tests[0].ks)
    groups: list[tuple[str, Sequence[ModelScores]]] = [
        ("all items ranked", [found for found in tests if not found.key.masked]),
        ("seen items filtered out", [found for found in tests if found.key.masked]),
    ]
    if evaluation.new_items:
        groups.insert(0, ("new items only", evaluation.new_items))
    cards = []
    for note, shown in groups:
        for name in (f"recall_at_{k}", f"ndcg_at_{k}"):
            longest = max(found.scores[name].high for found in shown) or 1.0
            bars = tuple(
                Bar(
                    found.name,
                    found.scores[name],
                    colors[found.name],
                    *(
                        round(100 * value / longest, 2)
                        for value in (
                            found.scores[name].mean,
                            found.scores[name].low,
                            found.scores[name].high,
                        )
                    ),
                )
                for found in shown
            )
            best = max(bars[1:], key=lambda bar: bar.score.mean, default=None)
            ratio = bars[0].score.mean / best.score.mean if best and best.score.mean else None
            cards.append(Card(metric_title(name), note, bars, ratio, best.model if best else ""))
    return tuple(cards)
