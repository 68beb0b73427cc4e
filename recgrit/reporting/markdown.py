"""Markdown tables of a comparison, for a README."""

from __future__ import annotations

import math

from recgrit.reporting.comparison import Comparison
from recgrit.reporting.scores import Score, short_number


def render_markdown(comparison: Comparison) -> str:
    """Return each row's means with half their intervals, and the differences from the first row.

    Args:
        comparison: The compared models.

    Returns:
        Two Markdown tables, each followed by a line that explains it.
    """
    targets, users = comparison.num_targets, comparison.num_users
    who = f"{users:,} users" if targets == users else f"{targets:,} targets of {users:,} users"
    return "\n".join(
        [
            *_means(comparison),
            "",
            f"Test, {who}: means over seeds, ± half the 95% interval over users and seeds. "
            "Masked: seen items are filtered out.",
            *([comparison.repeats.explain()] if comparison.repeats is not None else []),
            "",
            *_differences(comparison),
            "",
            "Differences are paired by user and seed; a true difference as large as the "
            "detectable one is found with a probability of 80%.",
            "",
        ]
    )


def _means(comparison: Comparison) -> list[str]:
    columns = [(metric, view) for view in comparison.views for metric in comparison.headline]
    titles = [view.title(metric) for metric, view in columns]
    lines = [
        "| " + " | ".join(["model", *titles, "parameters", "search", "seeds"]) + " |",
        "|" + "---|" * (len(titles) + 4),
    ]
    for compared in comparison.rows:
        cells = [show_score(compared.of_view(view).scores[metric]) for metric, view in columns]
        size = compared.num_parameters
        cells += [
            "–" if size is None else f"{size:,}",
            compared.scores[0].search,
            str(len(compared.row.runs)),
        ]
        lines.append("| " + " | ".join([_text(compared.name), *cells]) + " |")
    return lines


def _differences(comparison: Comparison) -> list[str]:
    lines = [
        f"| against {_text(comparison.base.name)} | metric | difference | relative | 95% interval "
        "| detectable | seeds |",
        "|" + "---|" * 7,
    ]
    for found in comparison.differences:
        value = found.value
        cells = [
            _text(found.row),
            found.view.title(found.metric),
            f"{value.mean:+.4f}",
            show_relative(value.mean, value.baseline),
            f"{value.low:+.4f} to {value.high:+.4f}",
            f"{value.detectable:.4f}",
            str(value.num_seeds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def show_score(score: Score) -> str:
    """Return a mean and half the width of its interval as text.

    Example:
        >>> show_score(Score(0.0765, 0.07, 0.083))
        '.0765 ±.0065'
    """
    if math.isnan(score.low):
        return short_number(score.mean)
    return f"{short_number(score.mean)} ±{short_number((score.high - score.low) / 2)}"


def show_relative(difference: float, baseline: float) -> str:
    """Return a difference as a percentage of the baseline, or a dash if the baseline is zero.

    Example:
        >>> show_relative(0.01, 0.1), show_relative(0.01, 0.0)
        ('+10.0%', '–')
    """
    return f"{difference / baseline:+.1%}" if baseline else "–"


def _text(name: str) -> str:
    """Return a name in which no character can end a table cell."""
    return name.replace("|", "\\|")
