"""The filters that the settings ask for, and the error that is raised if they leave nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from recgrit.data.config import DataConfig, to_seconds
from recgrit.data.filtering import Filter, keep_events, keep_one_per_item, keep_titled, keep_within
from recgrit.data.funnel import Tally
from recgrit.data.minionerec import keep_short_titles
from recgrit.data.sources import RawData
from recgrit.errors import ConfigError, DataError


@dataclass(frozen=True)
class Step:
    """A filter and its name in the funnel.

    Args:
        name: Name of the step in the funnel.
        keep: Function that returns the rows to keep.
    """

    name: str
    keep: Filter


class WeightFilter:
    """A filter that keeps the interactions whose weight is high enough.

    The filter also records the highest weight, for the message that no interaction is left.

    Args:
        least: Lowest weight to keep.
    """

    def __init__(self, least: float) -> None:
        # The minimum is float32 as the column is; otherwise 3.1 would not be at least 3.1.
        self._is_heavy = pl.col("weight") >= pl.lit(least, dtype=pl.Float32)
        self.least, self.highest = least, -float("inf")

    def __call__(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows whose weight is at least the minimum."""
        if not rows.is_empty():
            self.highest = max(self.highest, rows["weight"].to_numpy().max())
        return rows.filter(self._is_heavy)


def build_steps(config: DataConfig, raw: RawData) -> list[Step]:
    """Return the filters that the settings ask for, in order.

    Raises:
        ConfigError: ``min_weight`` is set, and the files have no ratings.
    """
    steps = []
    if config.test_until is not None:  # First, so that later rows influence no other step.
        end = to_seconds(config.test_until)
        steps.append(
            Step(
                f"from {config.test_until:%Y-%m-%d %H:%M:%S} on",
                lambda rows: rows.filter(pl.col("timestamp") < end),
            )
        )
    if config.event_types is not None and config.event_types.left_out:
        left_out = ", ".join(config.event_types.left_out)
        steps.append(Step(f"events left out: {left_out}", keep_events))
    if config.since is not None or config.until is not None:
        steps.append(
            Step(
                f"not from {config.since or 'the start'} to {config.until or 'the end'}",
                lambda rows: keep_within(rows, config.since, config.until),
            )
        )
    if config.min_weight is not None:
        if "weight" not in raw.coded.frame.columns:
            raise ConfigError(
                f"data.min_weight is {config.min_weight:g}, but these files of {config.source} "
                "have no ratings. Set data.min_weight=null"
                + (
                    "; to leave out a type of event, set it to null in data.event_weights."
                    if config.table.event is not None
                    else "."
                )
            )
        steps.append(Step(f"weight below {config.min_weight:g}", WeightFilter(config.min_weight)))
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
    """Return the metadata of the items in the log, with item codes in place of the ids."""
    codes = item_ids.alias("item_id").to_frame().with_row_index("code")
    joined = metadata.join(codes, on="item_id", how="inner")
    return joined.with_columns(pl.col("code").cast(pl.Int32).alias("item_id"))


def refuse_nothing_left(steps: Sequence[Step], tallies: Sequence[Tally]) -> None:
    """Raise an error if the filters leave no interaction.

    Args:
        steps: Filters that were applied.
        tallies: Numbers of interactions, users and items as read, then without duplicates, then
            after each filter.

    Raises:
        DataError: The filters leave nothing. The message names the settings to change.
    """
    for step, (before, after) in zip(steps, itertools.pairwise(tallies[1:]), strict=True):
        if isinstance(step.keep, WeightFilter) and before.interactions and not after.interactions:
            raise DataError(
                f"No interaction has a weight of at least {step.keep.least:g}; the largest is "
                f"{step.keep.highest:g}. Lower data.min_weight."
            )
    if not tallies[-1].interactions:
        raise DataError(
            f"The filters leave none of {tallies[0].interactions} interactions. Loosen data.since, "
            "data.until, data.event_weights, data.min_title_length or data.max_title_words."
        )
