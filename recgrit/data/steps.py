"""The filters of preparing that concern one row or one user at a time, and what the funnel says.

So they can be taken over all rows in memory, or over some users after others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from recgrit.data.filtering import keep_one_per_item, keep_titled, keep_within
from recgrit.data.minionerec import keep_short_titles
from recgrit.data.partitioned import Filter
from recgrit.data.sources import RawData
from recgrit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recgrit.data.prepare import DataConfig

# Steps of the funnel that are taken in memory and in partitions.
WITHOUT_ID = "without user or item id"
DUPLICATES = "exact duplicates"
REPEATS = "repeats of an item at another time"
TESTED = "users with a test target"
HELD_OUT = "items held out of training"
HELD_OUT_WITH = "training interactions held out with them"


@dataclass(frozen=True)
class Step:
    """A filter that concerns one row or one user at a time, and its name in the funnel."""

    name: str
    keep: Filter
    is_of_weight: bool = False


def build_steps(config: DataConfig, raw: RawData) -> list[Step]:
    """The filters that are asked for, in order."""
    steps = []
    if config.since is not None or config.until is not None:
        steps.append(
            Step(
                f"not from {config.since or 'ever'} to {config.until or 'ever'}",
                lambda rows: keep_within(rows, config.since, config.until),
            )
        )
    if config.min_weight is not None:
        if "weight" not in raw.coded.frame.columns:
            raise ConfigError(
                f"data.min_weight is {config.min_weight:g}, but these files of {config.source} "
                "have no ratings. Set data.min_weight=null."
            )
        # In float32 as the column, else 3.1 would not be at least 3.1.
        is_heavy = pl.col("weight") >= pl.lit(config.min_weight, dtype=pl.Float32)
        steps.append(
            Step(
                f"weight below {config.min_weight:g}",
                lambda rows: rows.filter(is_heavy),
                is_of_weight=True,
            )
        )
    if config.repeats != "keep":
        which = config.repeats
        steps.append(
            Step(
                f"repeats of an item, the {which} kept",
                lambda rows: keep_one_per_item(rows, which),
            )
        )
    if config.min_title_length or config.max_title_words is not None:
        items = _code_items(raw.items, raw.coded.item_ids)
    if config.min_title_length:
        steps.append(
            Step(
                f"title shorter than {config.min_title_length}",
                lambda rows: keep_titled(rows, items, config.min_title_length),
            )
        )
    if config.max_title_words is not None:
        max_words = config.max_title_words
        steps.append(
            Step(
                f"title unknown or of more than {max_words} words",
                lambda rows: keep_short_titles(rows, items, max_words),
            )
        )
    return steps


def _code_items(metadata: pl.DataFrame, item_ids: pl.Series) -> pl.DataFrame:
    """The metadata of items that interactions name, with their codes."""
    codes = item_ids.alias("item_id").to_frame().with_row_index("code")
    joined = metadata.join(codes, on="item_id", how="inner")
    return joined.with_columns(pl.col("code").cast(pl.Int32).alias("item_id"))


def name_k_core(config: DataConfig) -> str:
    """What the funnel calls the k-core."""
    return (
        f"k-core of {config.min_user_interactions} per user, "
        f"{config.min_item_interactions} per item"
    )


def all_too_light(config: DataConfig, highest: float) -> DataError:
    """The error of a rating that nothing reaches, the highest being this."""
    return DataError(
        f"No interaction has a weight of at least {config.min_weight:g}; the largest is "
        f"{highest:g}. Lower data.min_weight."
    )


def nothing_left(num_read: int) -> DataError:
    """The error of filters that leave nothing of so many rows."""
    return DataError(
        f"Nothing is left of {num_read} interactions. Loosen data.since, "
        "data.until, data.min_title_length or data.max_title_words."
    )


def no_core(num_before: int, config: DataConfig) -> DataError:
    """The error of a k-core without any of so many rows."""
    return DataError(
        f"None of {num_before} interactions is left after dropping users with fewer "
        f"than {config.min_user_interactions} interactions and items with fewer than "
        f"{config.min_item_interactions}. Lower data.min_user_interactions or "
        "data.min_item_interactions."
    )
