"""A proposed configuration as YAML, with what was found beside each setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from recgrit.config import SettingsLoader, validate
from recgrit.experiment import ExperimentConfig
from recgrit.progress import show_control
from recgrit.proposal.events import propose_targets, propose_weights
from recgrit.proposal.shop import ShopFacts
from recgrit.proposal.sizes import choose_sizes

COMMENT_COLUMN = 34


def write_shop_config(facts: ShopFacts, out: Path) -> str:
    """The YAML for a shop, which loads as it is.

    Args:
        facts: What was found in its files.
        out: Where it will be written; its name becomes that of the run.
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
        "# Every setting with its meaning: recgrit settings, or docs/settings.md.",
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
    return ["# To look at first:", *(f"#   - {_plain(text)}" for text in facts.warnings), "#"]


def _data(facts: ShopFacts) -> list[str]:
    columns, kept = facts.columns, facts.kept
    lines = [
        "data:",
        _line("source", "table", "files of your own", 1),
        _line("path", str(facts.events), "from where the command runs", 1),
        "  table:                        # which column is which",
        _line("user_id", columns.user_id, f"{facts.num_users:,} different", 2),
        _line("item_id", columns.item_id, f"{facts.num_items:,} different, in both files", 2),
        _line("timestamp", columns.timestamp, f"{facts.first} to {facts.last}, in UTC", 2),
    ]
    if columns.weight:
        lines.append(_line("weight", columns.weight, "ratings, for data.min_weight", 2))
    if facts.items is not None:
        lines.append(_line("items_path", str(facts.items), "", 2))
        if columns.title:
            lines.append(_line("title", columns.title, "what items are called", 2))
    lines += [_line(name, value, "", 2) for name, value in facts.table.items()]
    if columns.event:
        lines.append("    " + _commented("event", columns.event, "kinds of events, see below"))
    share = f"{facts.repeats.share:.0%} meet an item the user had before"
    soon = f"{facts.repeats.soon:.0%} of them within a day"
    lines.append(_line("repeats", "keep" if facts.keeps_repeats else "first", share, 1))
    if facts.repeats.share >= 0.05:
        lines += _explain_repeats(facts, soon)
    lines += [
        _line(
            "min_user_interactions",
            kept.min_user,
            f"with the next, leaves {kept.num_users:,} users,",
            1,
        ),
        _line(
            "min_item_interactions",
            kept.min_item,
            f"{kept.num_items:,} items and {kept.num_interactions:,} interactions",
            1,
        ),
        _line("split", "leave_one_out", "or temporal: all users before and after one day", 1),
    ]
    return [*lines, *_events(facts)]


def _explain_repeats(facts: ShopFacts, soon: str) -> list[str]:
    if facts.keeps_repeats:
        return [f"  # {soon}: people come back, which the model learns."]
    return [
        f"  # {soon}: the same visit. Only the first is kept, so that what is",
        "  # predicted is new to the user; 'keep' where people buy the same things again.",
    ]


def _events(facts: ShopFacts) -> list[str]:
    """What the kinds of events are worth, as lines to take the marks off."""
    if not facts.kinds:
        return []
    weights = propose_weights(facts.kinds)
    worth = {kind: weight for kind, weight in weights.items() if weight}
    undone = [kind for kind, weight in weights.items() if not weight]
    counts = ", ".join(f"{_plain(kind)} {number:,}" for kind, number in facts.kinds.items())
    lines = [
        f"  # Kinds of events: {counts}.",
        "  # They count alike unless these two lines and table.event above lose their mark.",
        "  # With repeats: first, a purchase is kept and not the view before it.",
        "  " + _commented("event_weights", worth, "what each is worth in training"),
        "  " + _commented("target_events", propose_targets(worth), "what is predicted"),
    ]
    if undone:
        names = ", ".join(_plain(kind) for kind in undone)
        lines.append(f"  # No interest, to be taken out of the log: {names}.")
    return lines


def _stages(facts: ShopFacts) -> list[str]:
    sizes, kept = choose_sizes(facts.kept), facts.kept
    has_text = facts.text is not None and bool(facts.text.used)
    lines = ["embedding:"]
    if has_text:
        lines.append(_line("encoder", "minilm", "a sentence encoder; lsa needs no weights", 1))
    else:
        lines.append(_line("encoder", "lsa", "there is no text that says more", 1))
    if facts.text is not None:
        lines.append(f"  # Item texts: {_plain(', '.join(facts.text.used) or 'none')}.")
        if facts.text.left_out:
            left = "; ".join(f"{name} ({why})" for name, why in facts.text.left_out.items())
            lines.append(f"  # Left out: {_plain(left)}.")
        if has_text:
            lines.append("  " + _commented("template", facts.text.template, ""))
    codes = sizes.codebook_size**sizes.num_levels
    weight, why = (0.5, "beside text") if has_text else (1.0, "as much as there is")
    return [
        *lines,
        "",
        "features:                       # what is quantized",
        _line("text_dim", sizes.text_dim, "principal components of the text", 1),
        _line("cooccurrence_dim", sizes.text_dim, "of what users took together", 1),
        _line("cooccurrence_weight", weight, why, 1),
        "",
        f"tokenizer:                      # semantic IDs of {kept.num_items:,} items",
        _line("num_levels", sizes.num_levels, "", 1),
        _line(
            "codebook_size",
            sizes.codebook_size,
            f"{codes:,} paths, some {_per_leaf(codes, kept.num_items)}",
            1,
        ),
        "",
        f"retriever:                      # for {kept.num_interactions:,} interactions",
        _line("model_dim", sizes.model_dim, "", 1),
        _line("num_layers", sizes.num_layers, "", 1),
        _line("num_heads", sizes.num_heads, "", 1),
        _line(
            "history_length",
            sizes.history_length,
            f"9 of 10 users have {kept.long_history:,} or fewer",
            1,
        ),
        _line("dropout", sizes.dropout, "", 1),
        _line("epochs", sizes.epochs, "at most; validation ends it earlier", 1),
        _line("batch_targets", sizes.batch_targets, "", 1),
        _line("warmup_steps", sizes.warmup_steps, "", 1),
        *(
            [_line("valid_users", 5000, "a fixed sample chooses the epoch", 1)]
            if kept.num_users > 5000
            else []
        ),
        "",
        "recommendation:",
        _line("top_k", 10, "", 1),
        _line(
            "exclude_seen",
            not facts.keeps_repeats or facts.repeats.share < 0.05,
            "whether what a user had is left out",
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
    return f"{text:<{COMMENT_COLUMN - 2}}# {_plain(comment)}" if comment else text


def _commented(name: str, value: Any, comment: str) -> str:
    text = f"# {name}: {_scalar(value)}"
    return f"{text}   # {_plain(comment)}" if comment else text


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    value = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(
        value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: object) -> str:
    """Text on one line of a comment."""
    return " ".join(show_control(str(value)).split())
