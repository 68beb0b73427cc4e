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

    from recgrit.runs import Run

# Columns that the table of metrics takes at three list lengths.
WIDE = 112
# Of a user's history, beside recommendations.
SHOWN_HISTORY = 3

output = build_console(stderr=False)


def print_metrics(opened: Run) -> None:
    """One table where there is room; on a narrow terminal one per model, for shorter labels."""
    from recgrit.evaluation.table import metrics_table

    splits = ("valid", "valid_masked", "test", "test_masked")
    models = {
        model: {name.replace("_", " "): opened.reports[prefix + name] for name in splits}
        for model, prefix in (("retriever", ""), ("popularity", "popularity_"))
    }
    test = opened.reports["test"]
    targets, users = test.per_user.height, test.protocol["num_users"]
    who = f"{users:,} users" if targets == users else f"{targets:,} targets of {users:,} users"
    note = f"{who}, all items ranked, mean ± half the 95% interval"
    if output.width >= WIDE:
        groups = {
            note: {f"{m} {name}": r for m, rows in models.items() for name, r in rows.items()}
        }
    else:
        output.print(note)
        groups = models
    for title, rows in groups.items():
        table = metrics_table(rows)
        table.title = title
        output.print(table)
    output.print("masked: the items of a user's history are kept out of the lists")


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


def print_retriever(summary: Mapping[str, Any]) -> None:
    """The epoch that was kept, and the parameters by part."""
    parts = summary["num_parameters"]
    output.print(
        f"Retriever: best epoch {summary['best_epoch']} of {summary['num_epochs']}; "
        f"{sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {count:,}" for name, count in parts.items())
        + "."
    )


def recommendation_table(user_id: str, rows: pl.DataFrame) -> Table:
    """One user's list, best first."""
    table = build_table("rank", "item", "title", "semantic ID", "score", numbers=("rank", "score"))
    table.title = f"User {escape(user_id)}"
    for row in rows.iter_rows(named=True):
        table.add_row(
            str(row["rank"]),
            escape(row["item_id"]),
            escape(row["title"]),
            row["semantic_id"],
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
