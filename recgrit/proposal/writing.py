"""Writing of a proposed configuration as YAML, with comments that explain each setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from recgrit.config import SettingsLoader, validate
from recgrit.data.sources.reading import show_names
from recgrit.experiment import ExperimentConfig
from recgrit.progress import show_control
from recgrit.proposal.shop import FEW_REPEATS, ShopFacts
from recgrit.proposal.sizes import DENSE, FEW_ITEMS, MANY_ITEMS, choose_sizes

COMMENT_COLUMN = 34


def write_shop_config(facts: ShopFacts, out: Path) -> str:
    """Return the YAML for a shop's files, which can be used unchanged.

    Args:
        facts: Everything that was found in the files.
        out: Path that the YAML will be written to. Its name without the ending becomes the name of
            the run's folder.
    """
    lines = [
        f"# Made by 'recgrit init' from {_plain(facts.events)}"
        + (f" and {_plain(facts.items)}" if facts.items else "")
        + ".",
        f"# {facts.num_rows:,} interactions of {facts.num_users:,} users with {facts.num_items:,} "
        f"items, {facts.first} to {facts.last}.",
        "#",
        *(_heading(facts) if facts.warnings else ()),
        f"#   recgrit run {_plain(out)}",
        "#",
        "# Every setting with its meaning: recgrit settings, or docs/reference/settings.md.",
        "",
        "seed: 0",
        "",
        "run:",
        _line("dir", f"runs/{out.stem}", "where all results go", 1),
        "",
        *_data(facts),
        "",
        *_stages(facts),
    ]
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    validate(ExperimentConfig, yaml.load(text, SettingsLoader), "the proposed settings")
    return text


def _heading(facts: ShopFacts) -> list[str]:
    return ["# Check first:", *(f"#   - {_plain(text)}" for text in facts.warnings), "#"]


def _data(facts: ShopFacts) -> list[str]:
    columns, kept = facts.columns, facts.kept
    lines = [
        "data:",
        _line("source", "table", "files of your own", 1),
        _line("path", str(facts.events), "relative to where the command runs", 1),
        "  table:                        # which column is which",
        _line("user_id", columns.user_id, f"{facts.num_users:,} different", 2),
        _line("item_id", columns.item_id, _describe_items(facts), 2),
        _line("timestamp", columns.timestamp, f"{facts.first} to {facts.last}, in UTC", 2),
    ]
    if columns.weight:
        lines.append(_line("weight", columns.weight, "ratings, for data.min_weight", 2))
    if facts.items is not None:
        lines.append(_line("items_path", str(facts.items), "names and texts of the items", 2))
        if columns.items_id:
            lines.append(_line("items_id", columns.items_id, "this column has the same ids", 2))
        if columns.title:
            lines.append(_line("title", columns.title, "titles of the items", 2))
    if facts.users is not None:
        lines.append(_line("users_path", str(facts.users), "attributes of the users", 2))
    lines += [_line(name, value, "as given to init", 2) for name, value in facts.table.items()]
    if facts.events_choice is not None and columns.event:
        comment = "types of events, see below"
        if facts.events_choice.is_sure:
            lines.append(_line("event", columns.event, comment, 2))
        else:
            lines.append("    " + _commented("event", columns.event, comment))
    lines += _events(facts)
    share = f"{facts.repeats.share:.0%} of events are with an item the user had before"
    lines.append(_line("repeats", "keep" if facts.keeps_repeats else "first", share, 1))
    if facts.repeats.share >= FEW_REPEATS:
        lines += _explain_repeats(facts, f"{facts.repeats.soon:.0%} of them within a day")
    why = (
        f"with {kept.min_item} for items it leaves {kept.num_users:,} of {facts.num_users:,} users,"
    )
    left = f"{kept.num_items:,} items and {kept.num_interactions:,} interactions"
    return [
        *lines,
        _line("min_user_interactions", kept.min_user, why, 1),
        _line("min_item_interactions", kept.min_item, left, 1),
        _line("split", "leave_one_out", "or temporal: all users before and after one day", 1),
    ]


def _describe_items(facts: ShopFacts) -> str:
    found = f"{facts.num_items:,} different"
    if facts.items is None:
        return found
    return f"{found}, in the log" if facts.columns.items_id else f"{found}, in both files"


def _explain_repeats(facts: ShopFacts, soon: str) -> list[str]:
    if facts.keeps_repeats:
        return [f"  # {soon}: people come back, which the model learns."]
    choice = facts.events_choice
    first = "Only the first is kept, of the strongest type," if choice and choice.is_sure else (
        "Only the first is kept,"
    )  # fmt: skip
    return [
        f"  # {soon}: the same visit. {first}",
        "  # so that what is predicted is new to the user; 'keep' where people buy again.",
    ]


def _events(facts: ShopFacts) -> list[str]:
    """Return the lines about event types. They are comments if the weights are uncertain."""
    choice = facts.events_choice
    if choice is None:
        return []
    counts = ", ".join(f"{_plain(name)} {number:,}" for name, number in facts.types.items())
    undone = [name for name, weight in choice.weights.items() if weight is None]
    targets = list(choice.targets)
    if choice.is_sure:
        out = "; null is left out" if undone else ""
        asked = "" if choice.asked is None else f": {choice.asked:,} users have two or more"
        return [
            f"  # Types of events: {counts}.",
            _line("event_weights", choice.weights, f"what each is worth in training{out}", 1),
            _line("target_events", targets, f"what is predicted{asked}", 1),
        ]
    return [
        f"  # Types of events: {counts}.",
        f"  # All count alike, since {_plain(choice.doubt)}. Where they differ, set the weights",
        "  # (null leaves a type out), and uncomment these two lines and table.event.",
        "  " + _commented("event_weights", choice.weights, "what each is worth in training"),
        "  " + _commented("target_events", targets, "what is predicted"),
    ]


def _stages(facts: ShopFacts) -> list[str]:
    kept = facts.kept
    sizes = choose_sizes(kept, facts.num_targets)
    has_text = facts.text is not None and bool(facts.text.used)
    lines = ["embedding:"]
    if has_text:
        lines.append(_line("encoder", "minilm", "a sentence encoder; lsa needs no weights", 1))
    else:
        lines.append(_line("encoder", "lsa", "there are no texts for a sentence encoder", 1))
    if facts.text is not None:
        lines.append(f"  # Item texts: {_plain(show_names(facts.text.used))}.")
        if facts.text.left_out:
            left = "; ".join(f"{name} ({why})" for name, why in facts.text.left_out.items())
            lines.append(f"  # Left out: {_plain(left)}.")
        if has_text:
            lines.append("  " + _commented("template", facts.text.template, ""))
    codes = sizes.codebook_size**sizes.num_levels
    weight, why = (0.5, "beside text") if has_text else (1.0, "full weight, since there is no text")
    per_item = _per_leaf(codes, kept.num_items)
    steps = math.ceil(facts.num_targets / sizes.batch_targets)
    return [
        *lines,
        "",
        "features:                       # what is quantized",
        _line("text_dim", sizes.text_dim, "principal components of the text, under a quarter", 1),
        _line("cooccurrence_dim", sizes.text_dim, "of the items; as many from interactions", 1),
        _line("cooccurrence_weight", weight, why, 1),
        "",
        f"tokenizer:                      # semantic IDs of {kept.num_items:,} items",
        _line("num_levels", sizes.num_levels, f"codebooks: {codes:,} IDs, some {per_item}", 1),
        _line(
            "codebook_size", sizes.codebook_size, "codes of each, a quarter of the items at most", 1
        ),
        "",
        f"retriever:                      # for {kept.num_interactions:,} interactions",
        *(
            [
                _line("size", "constant", f"no vector per item, from {MANY_ITEMS:,} items", 1),
                _line("node_buckets", sizes.node_buckets, "rows of vectors that nodes share", 1),
            ]
            if sizes.node_buckets
            else []
        ),
        *(
            []
            if sizes.tree_levels is None
            else [
                _line(
                    "tree_levels",
                    sizes.tree_levels,
                    f"choose among all items at once, up to {FEW_ITEMS:,}",
                    1,
                )
            ]
        ),
        _line("model_dim", sizes.model_dim, "larger from 20,000 and from 150,000 interactions", 1),
        _line("num_layers", sizes.num_layers, "2 from 20,000 interactions", 1),
        _line(
            "num_heads",
            sizes.num_heads,
            f"of {sizes.model_dim // sizes.num_heads} dimensions each",
            1,
        ),
        _line(
            "history_length",
            sizes.history_length,
            f"9 of 10 users have {kept.long_history:,} or fewer",
            1,
        ),
        _line(
            "dropout",
            sizes.dropout,
            f"0.5 from 150,000 interactions, 0.2 if that is {DENSE} for each item",
            1,
        ),
        _line("epochs", sizes.epochs, "at most: validation stops training", 1),
        _line("patience", sizes.patience, "after this many epochs without improvement", 1),
        _line(
            "batch_targets",
            sizes.batch_targets,
            f"{steps:,} step{'s' * (steps != 1)} an epoch for some {facts.num_targets:,} targets",
            1,
        ),
        _line("learning_rate", sizes.learning_rate, "0.001 from 150,000 interactions", 1),
        _line("warmup_steps", sizes.warmup_steps, "of the learning rate: an epoch or two", 1),
        *(
            ["  " + _commented("user_attributes", facts.user_columns, "what the model may read")]
            if facts.user_columns
            else []
        ),
        *(
            [_line("valid_users", 5000, "a fixed sample chooses the epoch", 1)]
            if kept.num_users > 5000
            else []
        ),
        *(
            [
                "",
                "# Metrics for each value of columns of the user table:",
                "# evaluation:",
                "#   " + _commented("segments", facts.user_columns, "").removeprefix("# "),
            ]
            if facts.user_columns
            else []
        ),
        "",
        "recommendation:",
        _line("top_k", 10, "items for each user", 1),
        _line(
            "exclude_seen",
            not facts.keeps_repeats or facts.repeats.share < FEW_REPEATS,
            "whether what a user had, also viewed, is left out"
            if facts.events_choice is not None
            else "whether what a user had is left out",
            1,
        ),
        "",
        "tracking:",
        _line("backend", "mlflow", "SQLite beside the run folder; none records nothing", 1),
    ]


def _per_leaf(codes: int, items: int) -> str:
    share = codes / max(items, 1)
    return f"{share:,.0f} for each item" if share >= 1 else f"{math.ceil(1 / share)} items on each"


def _line(name: str, value: Any, comment: str, depth: int) -> str:
    text = f"{'  ' * depth}{name}: {_scalar(value)}"
    # A blank must precede the comment mark. Without it, YAML reads the mark as part of the value.
    return f"{text:<{COMMENT_COLUMN - 3}} # {_plain(comment)}" if comment else text


def _commented(name: str, value: Any, comment: str) -> str:
    text = f"# {name}: {_scalar(value)}"
    return f"{text}   # {_plain(comment)}" if comment else text


def _scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    value = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(
        value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: object) -> str:
    """Return a value as text on one line, for a comment."""
    return " ".join(show_control(str(value)).split())
