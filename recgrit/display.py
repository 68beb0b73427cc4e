"""Terminal output of a run: tables of metrics, data, semantic IDs, models and recommendations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from recgrit.progress import build_console

if TYPE_CHECKING:
    import polars as pl

    from recgrit.evaluation.report import EvaluationReport
    from recgrit.folds import FoldResults
    from recgrit.runs import Run

# Width in characters that the table of metrics needs for three list lengths.
WIDE = 116
# Number of history items that are printed above recommendations.
SHOWN_HISTORY = 3

output = build_console(stderr=False)


def print_metrics(opened: Run) -> None:
    """Print the metrics of the run's own model and its baselines.

    Each row is one split, with or without seen items filtered out of the lists. A wide terminal
    gets one table. A narrow one gets a table for each model, whose labels are shorter. If many test
    targets are already in the history before them, a note says so, and the metrics of the other
    targets come first.
    """
    from recgrit.reporting.scores import name_model

    own = opened.model_kind
    repeats, new_items = opened.repeats, opened.new_items
    models: dict[str, dict[str, EvaluationReport]] = {}
    for key in sorted(opened.reports, key=lambda k: (k.model != own, k.model, k.split == "test")):
        rows = models.setdefault(name_model(key.model, own), {})
        if key.model in new_items and not rows:
            rows["test new items"] = new_items[key.model]
        label = f"{key.split} masked" if key.masked else key.split
        rows[label] = opened.reports[key]
    protocol = opened.report("test").protocol
    targets, users = protocol["num_targets"], protocol["num_users"]
    who = f"{users:,} users" if targets == users else f"{targets:,} targets of {users:,} users"
    search = f"{own}: {protocol['search']}"
    note = f"{who}, all items ranked ({search}), mean ± half the 95% interval"
    if repeats.are_many:
        output.print(escape(repeats.explain()))
    if output.width >= WIDE:
        groups = {
            note: {f"{m} {name}": r for m, rows in models.items() for name, r in rows.items()}
        }
    else:
        output.print(escape(note))
        groups = models
    for title, shown in groups.items():
        output.print(f"\n{escape(title)}")
        for table in metrics_tables(shown, output.width):
            output.print(table)
    output.print(
        "Recall@K: share of targets among the first K of their list. NDCG@K: a target counts "
        "more the higher it ranks. valid: targets for early stopping and choosing settings; "
        "test: all others. masked: seen items are filtered out of the lists."
    )


def print_folds(found: FoldResults) -> None:
    """Print one row for each fold, and the mean over folds with its 95% interval."""
    from recgrit.evaluation.metrics import HEADLINES
    from recgrit.reporting.scores import headline_k, metric_title, short_number

    k = headline_k(found.folds[0].report.ks)
    names = [f"{metric.lower()}_at_{k}" for metric in HEADLINES]
    titles = [metric_title(name) for name in names]
    table = build_table("fold", "test from (UTC)", "targets", *titles, numbers=("targets", *titles))
    table.title = "Folds"
    for fold in found.folds:
        report = fold.report
        table.add_row(
            str(fold.number),
            fold.test_from[:16].replace("T", " "),
            f"{report.protocol['num_targets']:,}",
            *(_show_mean(report, name) for name in names),
        )
    means = [found.means[name] for name in names]
    shown = [f"{short_number(m.mean)} ±{short_number((m.high - m.low) / 2)}" for m in means]
    table.add_row("mean", "", "", *shown)
    output.print(table)
    output.print("The ± of the mean is half of Student's 95% interval over folds.")


def metrics_tables(rows: Mapping[str, EvaluationReport], width: int) -> list[Table]:
    """Build tables with one row per report and one column per metric and list length.

    Each cell is a mean ± half its 95% interval. If that is a little too wide, the half interval
    goes below its mean. If the list lengths still do not fit, each list length gets a row, and
    reports are side by side.

    Args:
        rows: Reports by row label, such as ``"popularity test"``.
        width: Width of the terminal in characters.
    """
    from recgrit.evaluation.metrics import HEADLINES

    ks = sorted({k for report in rows.values() for k in report.ks})
    keys = {f"{metric}@{k}": f"{metric.lower()}_at_{k}" for metric in HEADLINES for k in ks}
    cells = {
        label: [_show_mean(report, key) for key in keys.values()] for label, report in rows.items()
    }
    # A column is at least as wide as its longest word, since words are never broken.
    columns = [
        (title, *(numbers[place] for numbers in cells.values())) for place, title in enumerate(keys)
    ]
    widths = [max(len(word) for cell in column for word in cell.split()) for column in columns]
    longest_word = max((len(word) for label in rows for word in label.split()), default=0)
    if _table_width([longest_word, *widths]) > width:
        return _tall_tables(rows, ks, width)
    table = _open_table()
    one_line = [max(map(len, column)) for column in columns]
    longest_label = max(map(len, rows), default=0)
    if _table_width([longest_label, *one_line]) <= width:
        widths = one_line
    left = width - _table_width([0, *widths])
    table.add_column("", width=min(longest_label, left), overflow="fold")
    for title, column in zip(keys, widths, strict=True):
        table.add_column(title, justify="right", width=column)
    for label, numbers in cells.items():
        table.add_row(escape(label), *numbers)
    return [table]


def _tall_tables(rows: Mapping[str, EvaluationReport], ks: list[int], width: int) -> list[Table]:
    """Build tables with one row per list length and as many reports side by side as fit."""
    from recgrit.evaluation.metrics import HEADLINES

    numbers = {
        (label, metric): [_show_mean(report, f"{metric.lower()}_at_{k}") for k in ks]
        for label, report in rows.items()
        for metric in HEADLINES
    }
    cell = max(len(text) for column in numbers.values() for text in column)
    first = max(len("K"), *(len(str(k)) for k in ks))
    if _table_width([first, *[cell] * len(HEADLINES)]) > width:  # Put intervals below their means.
        cell = max(len(word) for column in numbers.values() for t in column for word in t.split())
    per_table = 1
    while (
        per_table < len(rows)
        and _table_width([first, *[cell] * (len(HEADLINES) * (per_table + 1))]) <= width
    ):
        per_table += 1
    tables = []
    labels_of_all = list(rows)
    for start in range(0, len(labels_of_all), per_table):
        labels = labels_of_all[start : start + per_table]
        table = _open_table()
        table.add_column("K", justify="right", width=first)
        columns = [(label, metric) for label in labels for metric in HEADLINES]
        for label, metric in columns:
            title = f"{escape(label)} {metric}"
            table.add_column(title, justify="right", width=cell, overflow="fold")
        for place, k in enumerate(ks):
            table.add_row(str(k), *(numbers[column][place] for column in columns))
        tables.append(table)
    return tables


def _show_mean(report: EvaluationReport, key: str) -> str:
    from recgrit.reporting.scores import short_number

    if key not in report.means:
        return "–"
    low, high = report.bounds[key]
    return f"{short_number(report.means[key])} ±{short_number((high - low) / 2)}"


def _table_width(columns: Sequence[int]) -> int:
    """Return the width in characters of a table with columns of these widths."""
    return sum(columns) + 2 * len(columns) + 1


def _open_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def build_table(*columns: str, numbers: tuple[str, ...] = ("seconds",)) -> Table:
    """Build an empty table in recgrit's style.

    Args:
        columns: Titles of the columns, in order.
        numbers: Titles of the columns that are aligned to the right.
    """
    table = _open_table()
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def funnel_table(funnel: list[dict[str, Any]]) -> Table:
    """Build the table of what each step of the data preparation kept and dropped."""
    numbers = ("interactions", "users", "items", "dropped", "counted")
    table = build_table("step", *numbers, numbers=numbers)
    table.title = "Data"
    for row in funnel:
        table.add_row(
            *(
                ""
                if row[name] is None
                else f"{row[name]:,}"
                if name != "step"
                else escape(row[name])
                for name in ("step", *numbers)
            )
        )
    return table


def print_tokenizer(summary: Mapping[str, Any]) -> None:
    """Print how each level's codebook is used, and how many items shared an ID."""
    from recgrit.semantic_ids.collisions import explain_method

    found = summary["diagnostics"]
    columns = ("level", "codes", "usage", "perplexity", "dead", "residual norm", "neighbours kept")
    table = build_table(*columns, numbers=columns)
    table.title = "Semantic IDs"
    for level in found["levels"]:
        table.add_row(
            str(level["level"]),
            str(level["codebook_size"]),
            f"{level['codebook_usage']:.1%}",
            f"{level['perplexity']:.0f}",
            str(level["dead_codes"]),
            # Published codes come without the vectors that they quantize, so two columns are empty.
            f"{norm:.3f}" if (norm := level["residual_norm"]) is not None else "–",
            f"{kept:.1%}" if (kept := level["neighbours_kept"]) is not None else "–",
        )
    output.print(table)
    shared = f"{found['collision_rate']:.1%} of {summary['num_items']:,} items shared an ID"
    if found["collision_rate"]:
        shared += f" (at most {found['largest_bucket']} on one), made unique by "
        shared += escape(explain_method(summary["unique_by"]))
    if summary["num_moved"]:
        shared += f", {summary['num_moved']:,} moved"
    output.print(f"{shared}.")
    if "published" in summary:
        unknown = summary["num_unknown"]
        source = escape(summary["published"])
        output.print(f"Read from {source}; {unknown:,} of its items are not in the catalogue.")


def print_model(summary: Mapping[str, Any]) -> None:
    """Print the epoch that was kept and the number of parameters of each part of the model."""
    parts, kept = summary["num_parameters"], ""
    if "best_epoch" in summary:
        kept = f"best epoch {summary['best_epoch']} of {summary['num_epochs']}; "
    output.print(
        f"Model {escape(summary['model'])}: {kept}{sum(parts.values()):,} parameters: "
        + ", ".join(f"{escape(name)} {count:,}" for name, count in parts.items())
        + "."
    )


def recommendation_table(user_id: str, rows: pl.DataFrame) -> Table:
    """Build the table of one user's list, best first, with semantic IDs if the model has them."""
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


def print_history(history: pl.DataFrame, source: str = "model") -> None:
    """Print the latest titles of the history that a list of recommendations is based on.

    Args:
        history: Items of the user's history, oldest first, with a column ``title``.
        source: What the list comes from: "model", "history" or "popular", as in
            `recommender.Source`.
    """
    if source == "popular":
        output.print("Popular items: no known item is in the history.\n")
        return
    latest = "; ".join(reversed(history["title"].tail(SHOWN_HISTORY).to_list()))
    items = "1 item" if history.height == 1 else f"{history.height:,} items"
    output.print(f"History of {items}, latest first: {escape(latest)}")
    if source == "history":
        output.print("The model was not trained with this history.")
    output.print()


def relatives_table(frame: pl.DataFrame) -> Table:
    """Build the table of the items that share an ID prefix with one item, nearest first."""
    table = build_table("levels shared", "item", "title", "semantic ID", numbers=("levels shared",))
    table.title = "Items that share its prefix"
    for row in frame.iter_rows():
        table.add_row(*(escape(str(value)) for value in row))
    return table
