"""The coverage, popularity and diversity of recommended lists, compared with people's own items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import DataError
from recgrit.evaluation.lists import (
    Lists,
    average_popularity,
    catalogue_coverage,
    gini_index,
    intra_list_diversity,
    long_tail_share,
    mean_popularity,
    mean_self_information,
)
from recgrit.layout import LISTS_NAME, baseline_stage
from recgrit.reporting.scores import FLOOR, name_model
from recgrit.runs import Run

# Largest number of lists that means are computed from, enough for means to two decimals. Coverage
# and the Gini index use all lists.
MAX_LISTS = 20_000


@dataclass(frozen=True)
class ListQuality:
    """The quality of lists from one source: a model, or people's own histories.

    Args:
        name: Name of the model, or ``people’s own``: the last items of the users' histories.
        coverage: Share of the catalogue that is in at least one list. None for people's own items.
        popularity: Mean popularity percentile of the listed items. Random items have 0.5.
        interactions: Mean number of training interactions of the listed items.
        long_tail: Share of listed items that are not among the 20% of items with the most
            interactions.
        novelty: Mean self-information of the listed items in bits: -log2 of the share of users who
            interacted with the item.
        gini: Inequality of how often items are listed (Gini index); 0 if all are listed equally
            often. None for people's own items.
        diversity: Mean cosine distance between two items of a list. None if items have no features.
    """

    name: str
    coverage: float | None
    popularity: float
    interactions: float
    long_tail: float
    novelty: float
    gini: float | None
    diversity: float | None


@dataclass(frozen=True)
class ListsOfRun:
    """The quality of a run's lists, and of the lists that they are compared with.

    Args:
        rows: Quality of each source, the run's own lists first.
        top_k: Length of the lists.
        num_lists: Number of lists of the run.
        num_sampled: Number of these lists that the means are over.
        listed: Number of items that are in no list, in one list, in 2 to 5 lists and so on, by
            label.
    """

    rows: tuple[ListQuality, ...]
    top_k: int
    num_lists: int
    num_sampled: int
    listed: dict[str, int]


TIMES_LISTED = ((0, 0), (1, 1), (2, 5), (6, 20), (21, 100), (101, None))


def load_recommendations(run: Run) -> tuple[npt.NDArray[np.int64], Lists]:
    """Read the recommendations of a run from its file.

    Lists of users that the filters left out of training are also in the file, and are skipped.

    Returns:
        Users, int64 ``[U]``, and items by rank, int32 ``[U, K]``, with `NO_ITEM` at the end of
        short lists. U is the number of users with a list, and K the length of the longest list.

    Raises:
        ArtifactError: The file is missing or damaged, or its lists have unknown users or items, or
            impossible ranks.
    """
    data = run.data.interactions
    known_users = pl.concat([data.user_ids, run.data.left_out.user_ids])

    def load(path: Path) -> pl.DataFrame:
        columns = ["user_id", "rank", "item_id"]
        frame = pl.read_parquet(path / LISTS_NAME, columns=columns, glob=False)
        is_right = (
            frame["rank"].dtype.is_integer()
            and frame["rank"].is_between(1, data.num_items).all(ignore_nulls=False)
            and frame["user_id"].is_in(known_users.implode()).all(ignore_nulls=False)
            and frame["item_id"].is_in(data.item_ids.implode()).all(ignore_nulls=False)
            and frame.select("user_id", "rank").is_unique().all()
            and frame.select("user_id", "item_id").is_unique().all()
            # No rank is missing: ranks are unique, so the largest equals the length of the list.
            and frame.select(pl.col("rank").max().over("user_id") == pl.len().over("user_id"))
            .to_series()
            .all()
        )
        if not is_right:
            raise DataError("the lists hold unknown users or items, wrong ranks, or duplicates")
        return frame

    frame = run.read("recommend", load)
    users = data.user_ids.alias("user_id").to_frame().with_row_index("user_idx")
    items = data.item_ids.alias("item_id").to_frame().with_row_index("item_idx")
    found = frame.join(users, on="user_id").join(items, on="item_id")
    listed, rows = np.unique(found["user_idx"].to_numpy(), return_inverse=True)
    ranks = found["rank"].to_numpy()
    lists = np.full((len(listed), int(ranks.max(initial=1))), NO_ITEM, dtype=np.int32)
    lists[rows, ranks - 1] = found["item_idx"].to_numpy()
    return listed.astype(np.int64), lists


def measure_lists(run: Run, *, seed: int) -> ListsOfRun:
    """Measure the quality of a run's lists, popularity's lists, and people's own latest items.

    Args:
        run: A run with recommendations.
        seed: Seed that selects the lists if there are more than `MAX_LISTS`.
    """
    from recgrit.ranking import recommend_items

    users, lists = load_recommendations(run)
    split = run.data.split
    features = run.features.vectors if "embed" in run.stages() else None
    counts = split.train_item_counts()
    takers, taken = split.train_pairs()
    num_takers = np.bincount(taken, minlength=split.num_items)
    num_users = len(np.unique(takers))
    top_k = lists.shape[1]
    chosen = np.arange(len(users))
    if len(users) > MAX_LISTS:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(users))[:MAX_LISTS])

    def rate(name: str, items: Lists, everybodys: Lists | None) -> ListQuality:
        """Measure the quality of lists from one source.

        Args:
            name: Name of the source.
            items: Lists that means are computed over.
            everybodys: Lists of all users, for coverage and the Gini index. None omits these two.
        """
        return ListQuality(
            name,
            None if everybodys is None else catalogue_coverage(everybodys, split.num_items),
            _mean(mean_popularity(items, counts)),
            _mean(average_popularity(items, counts)),
            _mean(long_tail_share(items, counts)),
            _mean(mean_self_information(items, num_takers, num_users)),
            None if everybodys is None else gini_index(everybodys, split.num_items),
            None if features is None else _mean(intra_list_diversity(items, features)),
        )

    own = name_model(run.model_kind, run.model_kind)
    rows = [rate(own, lists[chosen], lists)]
    if run.has(baseline_stage(FLOOR)) and run.model_kind != FLOOR:
        popular = recommend_items(
            run.recommender(FLOOR).ranker(),
            split,
            "all",
            users[chosen],
            top_k=top_k,
            masked=run.config.recommendation.exclude_seen,
        ).items
        rows.append(rate(FLOOR, popular, popular))
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
