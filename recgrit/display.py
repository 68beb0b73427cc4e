"""How a run looks in a terminal: its tables, in one style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from recgrit.progress import build_console

if TYPE_CHECKING:
    import polars as pl

    from recgrit.evaluation.report import EvaluationReport
    from recgrit.runs import Run

# Columns that the table of metrics takes at three list lengths.
WIDE = 116
# Of a user's history, beside recommendations.
SHOWN_HISTORY = 3

output = build_console(stderr=False)


def print_metrics(opened: Run) -> None:
    """The run's own model and its baselines, a row for each split, seen items filtered out or not.

    One table where there is room; on a narrow terminal one for each model, for shorter labels.
    Where many targets stand in the history already, that is said, and targets that do not come
    first.
    """
    from recgrit.evaluation.report import Repeats
    from recgrit.reporting.scores import name_model

    own = opened.model_kind
    repeats = Repeats.of(opened.report("test"), opened.data.split, opened.config.data)
    models: dict[str, dict[str, EvaluationReport]] = {}
    for key in sorted(opened.reports, key=lambda k: (k.model != own, k.model, k.split == "test")):
        rows = models.setdefault(name_model(key.model, own), {})
        if repeats.are_many and not rows:
            new = repeats.of_new_items(opened.report("test", masked=True, model=key.model))
            rows |= {} if new is None else {"test new items": new}
        label = f"{key.split} masked" if key.masked else key.split
        rows[label] = opened.reports[key]
    protocol = opened.report("test").protocol
    targets, users = protocol["num_targets"], protocol["num_users"]
    who = f"{users:,} users" if targets == users else f"{targets:,} targets of {users:,} users"
    search = f"{own}: {protocol['search']}"
    note = f"{who}, all items ranked ({search}), mean ± half the 95% interval"
    if repeats.are_many:
        output.print(repeats.explain())
    if output.width >= WIDE:
        groups = {
            note: {f"{m} {name}": r for m, rows in models.items() for name, r in rows.items()}
        }
    else:
        output.print(note)
        groups = models
    for title, shown in groups.items():
        table = metrics_table(shown)
        table.title = title
        output.print(table)
    output.print("masked: seen items are filtered out of the lists")


def metrics_table(rows: Mapping[str, EvaluationReport]) -> Table:
    """One row per report, one column per metric and k; each cell is a mean ± half its interval.

    A line takes about 110 columns at three list lengths; on a narrower terminal the half interval
    moves below its mean, down to about 80 columns.

    Args:
        rows: Reports by what to call them, such as ``"popularity test"``.
    """
    from recgrit.evaluation.metrics import METRICS
    from recgrit.reporting.scores import short_number

    def cell(report: EvaluationReport, key: str) -> str:
        if key not in report.means:
            return "–"
        low, high = report.bounds[key]
        return f"{short_number(report.means[key])} ±{short_number((high - low) / 2)}"

    ks = sorted({k for report in rows.values() for k in report.ks})
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Numbers wrap between mean and interval; words of a label are never broken.
    longest_word = max((len(word) for label in rows for word in label.split()), default=0)
    table.add_column("", min_width=longest_word)
    for metric in METRICS:
        for k in ks:
            table.add_column(f"{metric}@{k}", justify="right", overflow="fold")
    keys = [f"{metric.lower()}_at_{k}" for metric in METRICS for k in ks]
    for label, report in rows.items():
        table.add_row(escape(label), *(cell(report, key) for key in keys))
    return table


def build_table(*columns: str, numbers: tuple[str, ...] = ("seconds",)) -> Table:
    """An empty table in the one style of all tables here; ``numbers`` are set to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def funnel_table(funnel: list[dict[str, Any]]) -> Table:
    """What each step of the preparation kept and dropped."""
    numbers = ("interactions", "users", "items", "dropped", "counted")
    table = build_table("step", *numbers, numbers=numbers)
    table.title = "Data"
    for row in funnel:
        table.add_row(
            *("" if v is None else f"{v:,}" if isinstance(v, int) else v for v in row.values())
        )
    return table


def print_tokenizer(summary: Mapping[str, Any]) -> None:
    """Use of each level's codebook, and how many items shared an ID."""
    found = summary["diagnostics"]
    columns = ("level", "codes", "usage", "perplexity", "dead", "residual norm")
    table = build_table(*columns, numbers=columns)
    table.title = "Semantic IDs"
    for level in found["levels"]:
        table.add_row(
            str(level["level"]),
            str(level["codebook_size"]),
            f"{level['codebook_usage']:.1%}",
            f"{level['perplexity']:.0f}",
            str(level["dead_codes"]),
            # Published codes come without what they quantized.
            f"{norm:.3f}" if (norm := level["residual_norm"]) is not None else "–",
        )
    output.print(table)
    shared = f"{found['collision_rate']:.1%} of {summary['num_items']:,} items shared an ID"
    if found["collision_rate"]:
        shared += f" (at most {found['largest_bucket']} on one), made unique by "
        shared += summary["unique_by"]
    if summary["num_moved"]:
        shared += f", {summary['num_moved']:,} moved"
    output.print(f"{shared}.")
    if "published" in summary:
        unknown = summary["num_unknown"]
        output.print(f"Taken from {summary['published']}; {unknown:,} of its items are not here.")


def print_model(summary: Mapping[str, Any]) -> None:
    """The model: the epoch that was kept, and the parameters by part."""
    parts, kept = summary["num_parameters"], ""
    if "best_epoch" in summary:
        kept = f"best epoch {summary['best_epoch']} of {summary['num_epochs']}; "
    output.print(
        f"Model {summary['model']}: {kept}{sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {count:,}" for name, count in parts.items())
        + "."
    )


def recommendation_table(user_id: str, rows: pl.DataFrame) -> Table:
    """One user's list, best first; with semantic IDs where the model has them."""
    ids = ["semantic ID"] if "semantic_id" in rows.columns else []
    table = build_table("rank", "item", "title", *ids, "score", numbers=("rank", "score"))
    table.title = f"User {escape(user_id)}"
    for row in rows.iter_rows(named=True):
        table.add_row(
            str(row["rank"]),
            escape(row["item_id"]),
            escape(row["title"]),
            *([row["semantic_id"]] if ids else []),
            f"{row['score']:.2f}",
        )
    return table


def print_history(history: pl.DataFrame) -> None:
    """What a list of recommendations goes on from: the latest titles."""
    latest = "; ".join(reversed(history["title"].tail(SHOWN_HISTORY).to_list()))
    output.print(f"After {history.height:,} items, the latest first: {escape(latest)}\n")


def relatives_table(frame: pl.DataFrame) -> Table:
    """The relatives of an item in the tree of IDs, nearest first."""
    table = build_table("levels shared", "item", "title", "semantic ID", numbers=("levels shared",))
    table.title = "Items that share its prefix"
    for row in frame.iter_rows():
        table.add_row(*(escape(str(value)) for value in row))
    return table
