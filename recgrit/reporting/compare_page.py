"""The HTML page that compares several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from recgrit.reporting.comparison import ALL, MASKED, Comparison, Difference, View
from recgrit.reporting.figures import (
    GREY,
    add_line,
    as_json,
    assign_colors,
    build_figure,
    draw_breakdown,
    error_bars,
)
from recgrit.reporting.page import render
from recgrit.reporting.scores import FLOOR, metric_title


def render_comparison(comparison: Comparison) -> str:
    """Return the HTML page that compares several models."""
    own = [compared for compared in comparison.rows if not compared.row.is_baseline]
    return render(
        "compare.html.jinja",
        {"figures": build_figures(comparison)},
        title=" · ".join(compared.name for compared in own),
        comparison=comparison,
        own=own,
        stages=dict.fromkeys(
            stage for compared in own for found in compared.fingerprints.values() for stage in found
        ),
        colors=color_rows(comparison),
        metrics=metrics_of(comparison),
    )


def color_rows(comparison: Comparison) -> dict[str, str]:
    """Return the colour of each row, by the row's name. Popularity is grey if it is a baseline."""
    floor = [c.name for c in comparison.rows if c.row.is_baseline and c.row.kind == FLOOR]
    others = [compared.name for compared in comparison.rows if compared.name not in floor]
    return assign_colors(others) | dict.fromkeys(floor, GREY)


def metrics_of(comparison: Comparison) -> list[tuple[str, View]]:
    """Return the compared metrics, each with the targets and lists that it is measured on."""
    return list(dict.fromkeys((d.metric, d.view) for d in comparison.differences))


def build_figures(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Return every figure of the page as plotly's JSON, by the figure's name in the template."""
    colors = color_rows(comparison)
    figures = {
        f"difference_{metric.partition('_')[0]}{view.key.removeprefix('test')}": draw_differences(
            [d for d in comparison.differences if (d.metric, d.view) == (metric, view)], colors
        )
        for metric, view in metrics_of(comparison)
    }
    for name in ("recall", "ndcg"):
        figures[f"score_{name}"] = draw_scores(comparison, name, colors)
    for breakdown in comparison.breakdowns:
        figures[f"group_{breakdown.key}"] = draw_breakdown(breakdown, colors)
    for column, title in (("valid_ndcg_at_10", "NDCG@10 on validation"), ("train_loss", "loss")):
        figure = build_figure("epoch", title)
        figure.update_yaxes(rangemode="normal")
        for compared in comparison.rows:
            if compared.training is not None:
                epochs, name = compared.training.epochs, compared.name
                numbers = epochs["epoch"].to_list()
                add_line(figure, numbers, epochs[column].to_list(), name, colors[name])
        figures[column] = figure
    if any(compared.num_parameters for compared in comparison.rows):
        figures["size"] = draw_sizes(comparison, colors)
    return {name: as_json(figure) for name, figure in figures.items()}


def draw_sizes(comparison: Comparison, colors: dict[str, str]) -> go.Figure:
    """Draw NDCG on test over the number of trained parameters of each row.

    The lists have seen items filtered out. Rows without trained parameters are left out.
    """
    metric = next(name for name in comparison.headline if name.startswith("ndcg"))
    figure = build_figure("trained parameters", f"{metric_title(metric)} masked")
    for compared in comparison.rows:
        if compared.num_parameters is None:
            continue
        score = compared.of_view(MASKED).scores[metric]
        figure.add_scatter(
            x=[compared.num_parameters],
            y=[score.mean],
            mode="markers",
            name=compared.name,
            marker={"size": 11, "color": colors[compared.name]},
            error_y=error_bars([score]),
            hovertemplate="%{x:,} parameters, %{y:.4f}",
        )
    figure.update_xaxes(type="log", dtick="D2", showgrid=True)
    figure.update_yaxes(rangemode="normal")
    return figure


def draw_differences(differences: Sequence[Difference], colors: dict[str, str]) -> go.Figure:
    """Draw each row's difference from the first row with its interval, and a line at zero."""
    figure = build_figure("difference from the first row", "", height=110 + 44 * len(differences))
    for found in differences:
        value = found.value
        figure.add_scatter(
            x=[value.mean],
            y=[found.row],
            mode="markers",
            marker={"size": 11, "color": colors[found.row]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [value.high - value.mean],
                "arrayminus": [value.mean - value.low],
                "thickness": 2,
                "width": 6,
                "color": colors[found.row],
            },
            showlegend=False,
            hovertemplate="%{x:+.4f}<extra>" + metric_title(found.metric) + "</extra>",
        )
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5, "dash": "dot"})
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(tickformat="+.3~f", showgrid=True, nticks=5)
    figure.update_yaxes(type="category", showgrid=False, rangemode="normal")
    return figure


def draw_scores(comparison: Comparison, metric: str, colors: dict[str, str]) -> go.Figure:
    """Draw one metric on test over list lengths, with seen items kept in the lists."""
    figure = build_figure("length of the list", metric_title(f"{metric}_at_k").split("@")[0])
    for compared in comparison.rows:
        scores = compared.of_view(ALL).scores
        values = [scores[f"{metric}_at_{k}"] for k in comparison.ks]
        figure.add_bar(
            x=[f"top {k}" for k in comparison.ks],
            y=[value.mean for value in values],
            error_y=error_bars(values),
            name=compared.name,
            marker={"color": colors[compared.name]},
            hovertemplate="%{y:.4f}",
        )
    return figure
