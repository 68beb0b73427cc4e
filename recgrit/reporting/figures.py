"""The figures of the page about one run, drawn from its contents alone.

Colours have a medium lightness, so that they are visible on white and on black. Backgrounds, grids
and text get the colours of the page in the browser, and change with its theme.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recgrit.reporting.catalogue import Collisions
from recgrit.reporting.contents import IdContents, RunContents, TrainingContents
from recgrit.reporting.likeness import Likeness
from recgrit.reporting.lists import ListsOfRun
from recgrit.reporting.scores import FLOOR, Breakdown, ModelScores, Score, metric_title
from recgrit.semantic_ids.table import semantic_id_tokens

PALETTE = (
    "#5b7cfa",
    "#1fa39a",
    "#e0982f",
    "#d9577f",
    "#9a6bdb",
    "#63a94a",
    "#3fa0d8",
    "#c8643c",
    "#a39a3c",
    "#7f8ea3",
)
GREY = "#98a1b0"
HEIGHT = 300


def build_figures(contents: RunContents) -> dict[str, dict[str, Any]]:
    """Return every figure of a run's page as plotly's JSON, by its name in the template."""
    figures: dict[str, go.Figure] = {}
    if contents.evaluation is not None:
        colors = color_models(contents.evaluation.scores)
        for name in ("recall", "ndcg"):
            figures[f"score_{name}"] = draw_scores(contents.evaluation.scores, name, colors)
        for breakdown in contents.evaluation.breakdowns:
            figures[f"group_{breakdown.key}"] = draw_breakdown(breakdown, colors)
    if contents.ids is not None:
        figures |= _draw_ids(contents.ids)
    if contents.training is not None:
        figures |= _draw_training(contents.training)
    if contents.lists is not None:
        figures["listed"] = draw_times_listed(contents.lists)
    return {name: as_json(figure) for name, figure in figures.items()}


def as_json(figure: go.Figure) -> dict[str, Any]:
    """Return the traces and the layout of a figure as plain values."""
    values: dict[str, Any] = json.loads(figure.to_json())
    return values


def build_figure(
    x_title: str, y_title: str, *, height: int = HEIGHT, tick_format: str = ""
) -> go.Figure:
    """Return an empty figure in the common style of all figures."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 14, "t": 12, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={
            "title": {"text": x_title, "standoff": 8, "font": {"size": 12}},
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        yaxis={
            "title": {"text": y_title, "standoff": 8, "font": {"size": 12}},
            "rangemode": "tozero",
            "tickformat": tick_format,
            "automargin": True,
        },
        hovermode="x unified",
        bargap=0.3,
        colorway=PALETTE,
    )
    return figure


def color_models(scores: Sequence[ModelScores]) -> dict[str, str]:
    """Return the colour of each model: the first for the run's own model, grey for popularity."""
    names = list(dict.fromkeys(s.name for s in sorted(scores, key=lambda s: not s.is_own)))
    return assign_colors([name for name in names if name != FLOOR]) | {FLOOR: GREY}


def assign_colors(names: Sequence[str]) -> dict[str, str]:
    """Return a colour of the palette for each name. The colours repeat if there are more names."""
    return {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)}


def error_bars(scores: Sequence[Score]) -> dict[str, Any]:
    """Return plotly's settings for error bars that show the 95% intervals of some scores."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [score.high - score.mean for score in scores],
        "arrayminus": [score.mean - score.low for score in scores],
        "thickness": 1.4,
        "width": 4,
        "color": "#6b7280",
    }


def _pale(color: str, is_pale: bool) -> str:
    """Return the colour, half transparent if ``is_pale``.

    The colour itself is changed because a legend ignores the opacity of a trace.
    """
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.5)" if is_pale else color


def draw_scores(scores: Sequence[ModelScores], metric: str, colors: Mapping[str, str]) -> go.Figure:
    """Draw one metric on test over list lengths. Bars of masked lists are paler."""
    tests = [found for found in scores if found.key.split == "test"]
    figure = build_figure("length of the list", metric_title(f"{metric}_at_k").split("@")[0])
    for found in tests:
        values = [found.scores[f"{metric}_at_{k}"] for k in found.ks]
        figure.add_bar(
            x=[f"top {k}" for k in found.ks],
            y=[value.mean for value in values],
            error_y=error_bars(values),
            name=f"{found.name}, masked" if found.key.masked else found.name,
            marker={"color": _pale(colors[found.name], found.key.masked)},
            hovertemplate="%{y:.4f}",
        )
    return figure


X_TITLES = {
    "history": "items in the history",
    "popularity": "interactions of the next item in training",
    "cold": "is the next item in training?",
    "new": "is the user in training?",
    "category": "category of the next item",
}


def draw_breakdown(breakdown: Breakdown, colors: Mapping[str, str]) -> go.Figure:
    """Draw one metric by groups of targets, with the number of targets below each group."""
    x_title = X_TITLES.get(breakdown.key, breakdown.key)
    figure = build_figure(x_title, metric_title(breakdown.metric))
    models = list(dict.fromkeys(m for group in breakdown.groups for m in group.scores))
    # Counts are in a second line. Without it, plotly would read a label such as 1-4 as a date.
    labels = [f"{group.label}<br>{_count(group.num_targets)}" for group in breakdown.groups]
    for model in models:
        values = [group.scores[model] for group in breakdown.groups]
        figure.add_bar(
            x=labels,
            y=[value.mean for value in values],
            error_y=error_bars(values),
            name=model,
            marker={"color": colors[model]},
            hovertemplate="%{y:.4f}",
        )
    figure.update_xaxes(type="category", tickangle=0)
    return figure


def _count(number: int) -> str:
    return f"{number:,}" if number < 10_000 else f"{number / 1000:.1f}k"


def _draw_ids(ids: IdContents) -> dict[str, go.Figure]:
    found = {
        "usage": draw_usage(ids.usage),
        "perplexity": draw_perplexity(ids.summary["diagnostics"]["levels"]),
        "residual": draw_residuals(ids.summary["diagnostics"]["levels"]),
        "likeness": draw_likeness(ids.likeness),
    }
    if ids.epochs is not None:
        found["tokenizer"] = build_figure("epoch", "reconstruction loss")
        found["tokenizer"].add_scatter(
            x=ids.epochs["epoch"].to_list(),
            y=ids.epochs["reconstruction_loss"].to_list(),
            mode="lines",
            name="reconstruction loss",
            line={"width": 2.5},
            hovertemplate="%{y:.4f}",
        )
    if ids.collisions is not None:
        found["collisions"] = draw_collisions(ids.collisions)
    if ids.learning is not None:
        found["learning"] = draw_learning(ids.learning)
    return found


def draw_learning(epochs: pl.DataFrame) -> go.Figure:
    """Draw, for each epoch, the share of items whose ID changes while the IDs are learned.

    Such IDs are learned together with the prediction of the next item.
    """
    figure = build_figure("epoch", "share of items")
    for name, label in {
        "moved": "ID changed since the epoch before",
        "moved_since_start": "ID changed since the start",
        "first_code_moved": "first code changed since the start",
        "collision_rate": "ID shared with another item",
    }.items():
        figure.add_scatter(
            x=epochs["epoch"].to_list(),
            y=epochs[name].to_list(),
            mode="lines+markers",
            name=label,
            line={"width": 2.5},
            hovertemplate="%{y:.1%}",
        )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def draw_usage(usage: Sequence[Sequence[int]]) -> go.Figure:
    """Draw the number of items of each code, most used first, with one line per level.

    A flat line is even use. A steep fall means that few codes have most of the items.
    """
    figure = build_figure("codes, most used first", "items of the code")
    for level, counts in enumerate(usage):
        figure.add_scatter(
            x=list(range(1, len(counts) + 1)),
            y=list(counts),
            mode="lines",
            name=level_name(level),
            line={"width": 2, "shape": "hvh"},
        )
    return figure


def level_name(level: int) -> str:
    """Return the name of a level, with its number and the letter of its tokens.

    Example:
        >>> level_name(1)
        'level 1 (b)'
    """
    return f"level {level} ({semantic_id_tokens([0] * (level + 1))[-1][1]})"


def draw_perplexity(levels: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the codebook size, the number of used codes and the perplexity of each level.

    The perplexity is the number of equally used codes that would have the same entropy.
    """
    figure = build_figure("", "codes")
    names = [level_name(level["level"]) for level in levels]
    for name, color, values in (
        ("codebook", GREY, [level["codebook_size"] for level in levels]),
        ("used", PALETTE[6], [level["codebook_size"] - level["dead_codes"] for level in levels]),
        ("perplexity", PALETTE[0], [level["perplexity"] for level in levels]),
    ):
        figure.add_bar(
            x=names, y=values, name=name, marker={"color": color}, hovertemplate="%{y:.0f}"
        )
    return figure


def draw_residuals(levels: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the mean length of the residual that each level quantizes."""
    figure = build_figure("", "mean length of the residual")
    figure.add_bar(
        x=[level_name(level["level"]) for level in levels],
        y=[level["residual_norm"] for level in levels],
        name="residual",
        hovertemplate="%{y:.3f}",
    )
    return figure


def draw_likeness(likeness: Sequence[Likeness]) -> go.Figure:
    """Draw the similarity of two items by the number of first codes that they share."""
    figure = build_figure("first codes that two items share", "mean of pairs")
    names = [f"{row.shared_levels or 'any two'}<br>{_count(row.num_items)}" for row in likeness]
    figure.add_bar(
        x=names,
        y=[row.cosine for row in likeness],
        name="cosine of features",
        marker={"color": PALETTE[0]},
        hovertemplate="%{y:.3f}",
    )
    if any(row.common_tags is not None for row in likeness):
        figure.add_bar(
            x=names,
            y=[row.common_tags for row in likeness],
            name="common tags",
            marker={"color": PALETTE[1]},
            hovertemplate="%{y:.3f}",
        )
    figure.update_xaxes(type="category", tickangle=0)
    return figure


def draw_collisions(collisions: Collisions) -> go.Figure:
    """Draw the number of IDs by the number of items per ID. The scale is logarithmic."""
    figure = build_figure("items with the same ID", "IDs")
    figure.add_bar(
        x=[str(n) for n in collisions.num_ids],
        y=list(collisions.num_ids.values()),
        name="IDs",
        hovertemplate="%{y:,}",
    )
    figure.update_xaxes(type="category", tickangle=0)
    figure.update_yaxes(type="log", dtick=1)
    return figure


def _draw_training(training: TrainingContents) -> dict[str, go.Figure]:
    epochs, best = training.epochs, training.summary["best_epoch"]
    numbers = epochs["epoch"].to_list()
    loss = build_figure("epoch", "mean −log P, nats")
    loss.update_yaxes(rangemode="normal")
    add_line(loss, numbers, epochs["train_loss"].to_list(), "training loss")
    quality = build_figure("epoch", "on validation")
    for column, name in (("valid_recall_at_10", "Recall@10"), ("valid_ndcg_at_10", "NDCG@10")):
        add_line(quality, numbers, epochs[column].to_list(), name)
    figures = {"loss": loss, "quality": quality}
    by_level = list(zip(*epochs["level_accuracy"].to_list(), strict=True))
    if len(by_level) > 1:  # With one level, a model chooses among all items at once.
        figures["levels"] = build_figure("epoch", "right child of the prefix", tick_format=".0%")
        for level, values in enumerate(by_level):
            add_line(figures["levels"], numbers, list(values), level_name(level))
    for figure in figures.values():
        figure.add_vline(x=best, line={"color": GREY, "width": 1, "dash": "dot"})
        figure.update_xaxes(dtick=1 if len(numbers) <= 12 else None)
    return figures


def add_line(
    figure: go.Figure, x: list[int], y: list[float], name: str, color: str | None = None
) -> None:
    """Add a curve over epochs to a figure. With at most 30 epochs, each has a marker."""
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers" if len(x) <= 30 else "lines",
        name=name,
        line={"width": 2.5} if color is None else {"width": 2.5, "color": color},
        hovertemplate="%{y:.4f}",
    )


def draw_times_listed(lists: ListsOfRun) -> go.Figure:
    """Draw how many items are in no recommended list, in one list, and in more lists."""
    figure = build_figure(f"lists of {lists.top_k} that contain the item", "items")
    figure.add_bar(
        x=list(lists.listed),
        y=list(lists.listed.values()),
        name="items",
        hovertemplate="%{y:,}",
    )
    figure.update_xaxes(type="category", tickangle=0)
    return figure
