"""The page that shows several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from recgrit.reporting.comparison import POPULARITY, ComparedRun, Comparison, Difference
from recgrit.reporting.figures import (
    GREY,
    PALETTE,
    add_line,
    as_json,
    build_figure,
    draw_breakdown,
    error_bars,
)
from recgrit.reporting.page import render
from recgrit.reporting.scores import ModelScores, metric_title


def render_comparison(comparison: Comparison) -> str:
    """The page about several runs."""
    names = [run.name for run in comparison.runs]
    return render(
        "compare.html.jinja",
        {"figures": build_figures(comparison)},
        title=" · ".join(names),
        comparison=comparison,
        colors=run_colors(comparison.runs),
        metrics=metrics_of(comparison),
    )


def run_colors(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """A colour for each run, and grey for popularity."""
    colors = {run.name: PALETTE[place % len(PALETTE)] for place, run in enumerate(runs)}
    return {POPULARITY: GREY} | colors


def metrics_of(comparison: Comparison) -> list[tuple[str, bool]]:
    """The metrics that are compared, with whether histories are masked."""
    return list(dict.fromkeys((d.metric, d.masked) for d in comparison.differences))


def build_figures(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Every figure of the page, as plotly's JSON."""
    colors = run_colors(comparison.runs)
    figures = {
        f"difference_{metric.partition('_')[0]}{'_masked' if masked else ''}": draw_differences(
            [d for d in comparison.differences if (d.metric, d.masked) == (metric, masked)], colors
        )
        for metric, masked in metrics_of(comparison)
    }
    for name in ("recall", "ndcg"):
        rows = [(run.name, run.scores) for run in comparison.runs]
        figures[f"score_{name}"] = draw_scores(
            [*rows, (POPULARITY, comparison.popularity)], name, colors
        )
    for breakdown in comparison.breakdowns:
        figures[f"group_{breakdown.key}"] = draw_breakdown(breakdown, colors)
    for column, title in (("valid_ndcg_at_10", "NDCG@10 on validation"), ("train_loss", "loss")):
        figure = build_figure("epoch", title)
        figure.update_yaxes(rangemode="normal")
        for run in comparison.runs:
            numbers = run.epochs["epoch"].to_list()
            add_line(figure, numbers, run.epochs[column].to_list(), run.name, colors[run.name])
        figures[column] = figure
    return {name: as_json(figure) for name, figure in figures.items()}


def draw_differences(differences: Sequence[Difference], colors: dict[str, str]) -> go.Figure:
    """Each run's difference from the first with its interval, and the line of no difference."""
    figure = build_figure("difference from the first run", "", height=110 + 44 * len(differences))
    for found in differences:
        value = found.value
        figure.add_scatter(
            x=[value.mean],
            y=[found.run],
            mode="markers",
            marker={"size": 11, "color": colors[found.run]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [value.high - value.mean],
                "arrayminus": [value.mean - value.low],
                "thickness": 2,
                "width": 6,
                "color": colors[found.run],
            },
            showlegend=False,
            hovertemplate="%{x:+.4f}<extra>" + metric_title(found.metric) + "</extra>",
        )
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5, "dash": "dot"})
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(tickformat="+.3~f", showgrid=True, nticks=5)
    figure.update_yaxes(type="category", showgrid=False, rangemode="normal")
    return figure


def draw_scores(
    rows: Sequence[tuple[str, Sequence[ModelScores]]], metric: str, colors: dict[str, str]
) -> go.Figure:
    """One metric on test over list lengths, nothing masked."""
    figure = build_figure("length of the list", metric_title(f"{metric}_at_k").split("@")[0])
    for name, scores in rows:
        for found in scores:
            if found.masked:
                continue
            values = [found.scores[f"{metric}_at_{k}"] for k in found.ks]
            figure.add_bar(
                x=[f"top {k}" for k in found.ks],
                y=[value.mean for value in values],
                error_y=error_bars(values),
                name=name,
                marker={"color": colors[name]},
                hovertemplate="%{y:.4f}",
            )
    return figure
