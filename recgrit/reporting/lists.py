"""What a run recommends: reach, popularity and variety of its lists, beside people's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.recommendations import NO_ITEM
from recgrit.evaluation.lists import (
    Lists,
    catalogue_coverage,
    intra_list_diversity,
    long_tail_share,
    mean_popularity,
)
from recgrit.layout import LISTS_NAME, baseline_stage
from recgrit.reporting.scores import FLOOR, name_model
from recgrit.runs import Run

# Enough for means to two decimals; all lists count for coverage.
MAX_LISTS = 20_000


@dataclass(frozen=True)
class ListQuality:
    """Lists of one origin.

    Args:
        name: A model as it is shown, or ``people’s own``: the last items of their histories.
        coverage: Share of the catalogue in some list; None where that has no meaning.
        popularity: Mean popularity percentile of what is listed; .5 is random.
        long_tail: Share of what is listed outside the 20% of items with the most interactions.
        diversity: Mean cosine distance of two items of one list; None where items have no features.
    """

    name: str
    coverage: float | None
    popularity: float
    long_tail: float
    diversity: float | None


@dataclass(frozen=True)
class ListsOfRun:
    """The lists of a run and what they are compared with.

    Args:
        rows: The run's own first.
        top_k: Length of the lists.
        num_lists: Lists of the run.
        num_sampled: Of these, how many the means are over.
        listed: How many items are listed 0 times, once, 2 to 5 times and so on, by label.
    """

    rows: tuple[ListQuality, ...]
    top_k: int
    num_lists: int
    num_sampled: int
    listed: dict[str, int]


TIMES_LISTED = ((0, 0), (1, 1), (2, 5), (6, 20), (21, 100), (101, None))


def load_recommendations(run: Run) -> tuple[npt.NDArray[np.int64], Lists]:
    """The recommendations of a run: int64 [U] users and int32 [U, K] items by rank."""
    columns = ["user_id", "rank", "item_id"]
    frame = run.read(
        "recommend",
        lambda path: pl.read_parquet(path / LISTS_NAME, columns=columns, glob=False),
    )
    data = run.data.interactions
    users = data.user_ids.alias("user_id").to_frame().with_row_index("user_idx")
    items = data.item_ids.alias("item_id").to_frame().with_row_index("item_idx")
    found = frame.join(users, on="user_id").join(items, on="item_id")
    listed, rows = np.unique(found["user_idx"].to_numpy(), return_inverse=True)
    ranks = found["rank"].to_numpy()
    lists = np.full((len(listed), int(ranks.max(initial=1))), NO_ITEM, dtype=np.int32)
    lists[rows, ranks - 1] = found["item_idx"].to_numpy()
    return listed.astype(np.int64), lists


def measure_lists(run: Run, *, seed: int) -> ListsOfRun:
    """The quality of a run's lists, of popularity's, and of people's own latest items."""
    from recgrit.ranking import recommend_items

    users, lists = load_recommendations(run)
    split = run.data.split
    features = run.features.vectors if "embed" in run.stages() else None
    counts = split.train_item_counts()
    top_k = lists.shape[1]
    chosen = np.arange(len(users))
    if len(users) > MAX_LISTS:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(users))[:MAX_LISTS])

    def rate(name: str, items: Lists, coverage: float | None) -> ListQuality:
        return ListQuality(
            name,
            coverage,
            _mean(mean_popularity(items, counts)),
            _mean(long_tail_share(items, counts)),
            None if features is None else _mean(intra_list_diversity(items, features)),
        )

    own = name_model(run.model_kind, run.model_kind)
    rows = [rate(own, lists[chosen], catalogue_coverage(lists, split.num_items))]
    if run.has(baseline_stage(FLOOR)) and run.model_kind != FLOOR:
        popular = recommend_items(
            run.recommender(FLOOR).ranker(),
            split,
            "all",
            users[chosen],
            top_k=top_k,
            masked=run.config.recommendation.exclude_seen,
        ).items
        rows.append(rate(FLOOR, popular, catalogue_coverage(popular, split.num_items)))
    latest = np.full((len(chosen), top_k), NO_ITEM, dtype=np.int32)
    for row, user in enumerate(users[chosen]):
        last = split.full_sequence(int(user))[-top_k:]
        latest[row, : len(last)] = last
    rows.append(rate("people’s own", latest, None))
    times = np.bincount(lists[lists != NO_ITEM], minlength=split.num_items)
    listed = {
        _label(low, high): int(
            np.sum((times >= low) & (times <= (np.inf if high is None else high)))
        )
        for low, high in TIMES_LISTED
    }
    return ListsOfRun(tuple(rows), top_k, len(users), len(chosen), listed)


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _label(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return {0: "never", 1: "once"}.get(low, f"{low}–{high}")
