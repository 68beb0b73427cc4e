"""A recommender: a model, the items it ranks, and filters; named lists come out.

Runs, bundles and the MLflow model all hand out this one class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recgrit.data.ids import IdList, list_ids, read_ids
from recgrit.data.items import ItemTable
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, DataError
from recgrit.models.model import Model
from recgrit.models.popularity import PopularityRanker
from recgrit.ranking import Ranker, last_items, recommend_items, recommend_shards
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.text import is_text

if TYPE_CHECKING:
    from recgrit.ranking import History

logger = logging.getLogger(__name__)

TOP_K = 10
# Lists of users without a history are made for so many at once.
POPULAR_USERS = 65_536

# What a list comes from: the model after the history of a user it was trained with, the model after
# any other history, or how often items stand in training.
Source = Literal["model", "history", "popular"]
Fallback = Literal["popular"]


class Recommender:
    """Recommends items to users of a split, or after histories of external ids.

    Args:
        model: A fitted model.
        items: What the items are called: an ID table where the model has semantic IDs.
        beam_width: Prefixes kept at each level, for models that search.
        listed: bool ``[N]``, items that may be recommended at all; None for all.
        counts: int64 ``[N]``, how often each item stands in training; None where nobody knows, and
            where there are no popular items to fall back on.
    """

    def __init__(
        self,
        model: Model,
        items: SemanticIdTable | ItemTable,
        *,
        beam_width: int,
        listed: npt.NDArray[np.bool_] | None = None,
        counts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.model = model
        self.counts = counts
        self.items = items
        self.beam_width = beam_width
        self.listed = listed

    def ranker(
        self,
        *,
        beam_width: int | Literal["exact"] | None = None,
        allowed_items: IdList | None = None,
        blocked_items: IdList = (),
    ) -> Ranker:
        """The model, ready to rank.

        Args:
            beam_width: Prefixes kept at each level; "exact" scores every item; None for the
                recommender's own.
            allowed_items: External ids of the only items that may be listed, a bare string being
                one; None for all.
            blocked_items: External ids of items that are never listed.

        Raises:
            DataError: No item is left.
        """
        blocked = list_ids(blocked_items, "blocked_items")
        if beam_width is None and allowed_items is None and not blocked:
            return self._unfiltered
        allowed = None if allowed_items is None else list_ids(allowed_items, "allowed_items")
        return self._build(beam_width, self._find_allowed(allowed, blocked))

    def popular(
        self, *, allowed_items: IdList | None = None, blocked_items: IdList = ()
    ) -> PopularityRanker:
        """The most popular items, for those whose history holds nothing known.

        Args:
            allowed_items: As `ranker` has them.
            blocked_items: As `ranker` has them.

        Raises:
            ConfigError: Nobody knows how popular the items are.
            DataError: No item is left.
        """
        if self.counts is None:
            raise ConfigError(
                "This recommender does not know how often items stand in training, so there are no "
                "popular items to fall back on."
            )
        blocked = list_ids(blocked_items, "blocked_items")
        wanted = None if allowed_items is None else list_ids(allowed_items, "allowed_items")
        allowed = self._find_allowed(wanted, blocked)
        return PopularityRanker(self.counts, allowed=torch.from_numpy(allowed))

    @cached_property
    def _unfiltered(self) -> Ranker:
        return self._build(None, self.listed)

    def _build(
        self,
        beam_width: int | Literal["exact"] | None,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> Ranker:
        width = self.beam_width if beam_width is None else beam_width
        return self.model.ranker(
            beam_width=None if width == "exact" else width,
            allowed=None if allowed is None or allowed.all() else torch.from_numpy(allowed),
        )

    def list_users(
        self,
        split: SequenceSplit,
        user_ids: pl.Series,
        users: npt.NDArray[np.int64] | None = None,
        *,
        ranker: Ranker | None = None,
        top_k: int = TOP_K,
        exclude_seen: bool = True,
        source: Source = "model",
        popular: PopularityRanker | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Named lists after all that these users interacted with, some users at a time.

        Memory does not grow with the number of users.

        Args:
            split: Histories over the recommender's items.
            user_ids: External id of each user_idx.
            users: user_idx of each list; None for all users.
            ranker: From `ranker`; None for one without filters.
            top_k: Items per user; all there are, where it is more than that.
            exclude_seen: Keep out what a user already has.
            source: What the column ``source`` says of lists after a history: "model" where the
                model was trained with these users, else "history".
            popular: From `popular`; None where users without a history get no list.

        Returns:
            Tables with the columns user_id, rank, item_id, title, semantic_id where the model has
            semantic IDs, score, and source. The score of popular items is how often they stand in
            training.

        Raises:
            DataError: ``top_k`` is below 1.
        """
        top_k = min(check_top_k(top_k), len(self.items))
        users = np.arange(split.num_users) if users is None else users
        ranker = ranker or self.ranker()
        has_history = split.offsets[users] < split.offsets[users + 1]
        known, new = users[has_history], users[~has_history]
        for found in recommend_shards(ranker, split, known, top_k=top_k, masked=exclude_seen):
            yield self.name_lists(found, user_ids, source)
        if popular is not None:
            for start in range(0, len(new), POPULAR_USERS):
                found = list_popular(popular, new[start : start + POPULAR_USERS], top_k)
                yield self.name_lists(found, user_ids, "popular")

    def recommend_after(
        self,
        histories: Mapping[str, IdList],
        *,
        top_k: int = TOP_K,
        beam_width: int | None = None,
        exclude_seen: bool = True,
        allowed_items: IdList | None = None,
        blocked_items: IdList = (),
        fallback: Fallback | None = None,
    ) -> pl.DataFrame:
        """What is likely to follow histories that need not be in the data.

        Items that the catalogue does not hold are passed over, and their number is logged; so are
        names whose histories hold no known item, which get no list without a ``fallback``. Of a
        long history the last items are read.

        Args:
            histories: External item ids, oldest first, by a name for each list. A bare string is
                one id; nulls are passed over, and their number is logged.
            top_k: Items per list; all there are, where it is more than that.
            beam_width: Prefixes kept at each level; None for the recommender's own.
            exclude_seen: Keep out what the history holds.
            allowed_items: External ids of the only items that may be listed, a bare string being
                one; None for all.
            blocked_items: External ids of items that are never listed.
            fallback: "popular" lists the most popular items where a history holds no known one.

        Returns:
            Columns as `list_users`, with the name of each history as user_id, and "history" or
            "popular" as source.

        Raises:
            ConfigError: The fallback is unknown.
            DataError: ``top_k`` is below 1, a history is no list of ids, or no item is left.
        """
        check_fallback(fallback)
        if not isinstance(histories, Mapping):
            raise DataError(
                "Expected histories by a name for each list, such as {'anyone': ['242', '51']}, "
                f"got a {type(histories).__name__}."
            )
        ranker = self.ranker(
            beam_width=beam_width, allowed_items=allowed_items, blocked_items=blocked_items
        )
        odd = [name for name in histories if not (isinstance(name, str) and is_text(name))]
        if odd:
            raise DataError(f"Names of histories are text, got {odd[0]!r:.40}.")
        found = self.rank_histories(
            list(histories.values()), ranker=ranker, top_k=top_k, exclude_seen=exclude_seen
        )
        names = pl.Series(list(histories), dtype=pl.String)
        named = self.name_lists(found, names, "history")
        without = np.setdiff1d(np.arange(len(histories)), found.users)
        if len(without) and fallback is None:
            logger.warning(
                "%d histories hold no known item and get no list; fallback='popular' gives them "
                "popular items",
                len(without),
            )
        if not len(without) or fallback is None:
            return named
        popular = self.popular(allowed_items=allowed_items, blocked_items=blocked_items)
        top_k = min(check_top_k(top_k), len(self.items))
        others = self.name_lists(list_popular(popular, without, top_k), names, "popular")
        return pl.concat([named, others])

    def rank_histories(
        self,
        histories: Sequence[IdList],
        *,
        people: npt.NDArray[np.int64] | None = None,
        ranker: Ranker | None = None,
        top_k: int = TOP_K,
        exclude_seen: bool = True,
    ) -> Recommendations:
        """Lists after histories of external ids, as indices; ``users`` are places in the sequence.

        Histories without a known item have no list. A history that is a bare string has that one
        item; nulls are passed over, and their number is logged. ``people`` are the user_idx of
        those whom the model was trained with, -1 of others; None for nobody it knows.

        Raises:
            DataError: ``top_k`` is below 1, or a history is no list of ids.
        """
        top_k = min(check_top_k(top_k), len(self.items))
        if isinstance(histories, str):
            raise DataError(f"Expected a list of histories, such as [['242']], got {histories!r}.")
        read = [read_ids(ids, f"history {number}") for number, ids in enumerate(histories)]
        known = [self.items.find_items(history.ids) for history in read]
        num_nulls = sum(history.num_nulls for history in read)
        if num_nulls:
            logger.warning("%d nulls in the histories are passed over", num_nulls)
        num_unknown = sum(len(history.ids) for history in read) - sum(map(len, known))
        if num_unknown:
            what = "item of the histories is" if num_unknown == 1 else "items of the histories are"
            logger.warning("%d %s not in the catalogue", num_unknown, what)
        rows = np.array([row for row, items in enumerate(known) if len(items)], dtype=np.int64)
        split = SequenceSplit.of_histories(
            np.concatenate([np.empty(0), *(known[row] for row in rows)]).astype(np.int32),
            np.cumsum([0, *(len(known[row]) for row in rows)]),
            len(self.items),
        )
        if people is not None:
            split = replace(split, people=people[rows])
        found = recommend_items(
            ranker or self.ranker(),
            split,
            "all",
            np.arange(len(rows)),
            top_k=top_k,
            masked=exclude_seen,
        )
        return Recommendations(rows, found.items, found.scores)

    def explain(
        self,
        split: SequenceSplit,
        user: int,
        item_id: str,
        *,
        history: History = "all",
        num_siblings: int = 3,
        num_titles: int = 3,
    ) -> pl.DataFrame:
        """How an item's score after a user's history comes about, level by level of its ID.

        Args:
            split: Histories over the recommender's items.
            user: user_idx.
            item_id: External item id, listed or not; filters play no part.
            history: "valid" and "test" read what comes before that target, "all" everything.
            num_siblings: Other codes shown at each level, those that score most.
            num_titles: Titles that stand for a code: the items below it with most interactions.

        Returns:
            Rows of a level by rank. ``level``; ``code``; ``chosen``, whether it is the item's own;
            ``rank`` by score among the ``num_codes`` that could follow; ``probability`` given the
            codes before, so that those of the chosen rows multiply to P of the item;
            ``neighbour_share``, how much of P of the prefix so far comes from the neighbours'
            counts; ``boost``, what these add to the log of P in the prefix's score: the item's
            score is log P and the last chosen row's boost; ``num_items`` below it; ``titles``.

        Raises:
            ConfigError: The model has no tree of IDs to explain by.
            DataError: The item is unknown.
        """
        from recgrit.retrieval.explaining import name_choices, walk_to_item
        from recgrit.retrieval.trie_ranker import TrieRanker

        ranker = self.ranker()
        if not isinstance(ranker, TrieRanker) or not isinstance(self.items, SemanticIdTable):
            raise ConfigError(
                "Only the trie model explains its lists, code by code; this run has another model."
            )
        item = self.items.item_idx(item_id)
        ends = split.offsets[1:] if history == "all" else split.target_positions(history)
        starts, ends = split.offsets[:-1][[user]], ends[[user]]
        people = split.people_of(np.array([user]))
        read = last_items(split.items, starts, ends, ranker.history_length, people)
        return name_choices(
            ranker,
            self.items,
            walk_to_item(ranker, read.to(ranker.device), item),
            split.train_item_counts(),
            num_siblings=num_siblings,
            num_titles=num_titles,
        )

    def name_lists(
        self, found: Recommendations, user_ids: pl.Series, source: Source = "model"
    ) -> pl.DataFrame:
        """External ids, titles and semantic IDs in place of indices.

        Args:
            found: Lists.
            user_ids: Row i belongs to ``user_idx`` i.
            source: What the lists come from.
        """
        rows, columns = found.to_polars(), ["item_id", "title"]
        if isinstance(self.items, SemanticIdTable):
            columns.append("semantic_id")
        items = self.items.to_polars().select(columns)
        return pl.concat(
            [
                user_ids.alias("user_id").to_frame().select(pl.all().gather(rows["user_idx"])),
                rows.select("rank"),
                items.select(pl.all().gather(rows["item_idx"])),
                rows.select("score").with_columns(source=pl.lit(source)),
            ],
            how="horizontal",
        )

    def _find_allowed(
        self, allowed_items: list[str] | None, blocked_items: list[str]
    ) -> npt.NDArray[np.bool_]:
        """Which items may be listed, bool ``[N]``."""
        allowed = np.full(len(self.items), allowed_items is None)
        if allowed_items is not None:
            allowed[self._find_items(allowed_items, "allowed")] = True
        allowed[self._find_items(blocked_items, "blocked")] = False
        return allowed if self.listed is None else allowed & self.listed

    def _find_items(self, item_ids: list[str], what: str) -> npt.NDArray[np.int64]:
        """Where these items stand in the catalogue; unknown ones are logged and passed over."""
        found = self.items.find_items(item_ids)
        if len(found) < len(item_ids):
            logger.warning(
                "%d of %d %s items are not in the catalogue",
                len(item_ids) - len(found),
                len(item_ids),
                what,
            )
        return found


def listed_items(row: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The items of one list, without the filling at its end."""
    kept: npt.NDArray[np.int32] = row[row != NO_ITEM]
    return kept


def list_popular(
    ranker: PopularityRanker, users: npt.NDArray[np.int64], top_k: int
) -> Recommendations:
    """One list for all of these users: the most popular items, and their interactions."""
    best = ranker.order[:top_k]
    shape = (len(users), len(best))
    return Recommendations(
        users.astype(np.int64),
        np.broadcast_to(best.to(torch.int32).numpy(), shape),
        np.broadcast_to(ranker.counts[best].float().numpy(), shape),
    )


def check_fallback(fallback: object) -> None:
    """Refuse a fallback that there is not.

    Raises:
        ConfigError: It is neither "popular" nor None.
    """
    if fallback not in (None, "popular"):
        raise ConfigError(f"fallback must be 'popular', or left out, got {fallback!r:.40}.")


def check_top_k(top_k: object) -> int:
    """The length of lists that was asked for.

    Raises:
        DataError: It is no whole number from 1.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise DataError(f"top_k must be at least 1, got {top_k!r:.40}.")
    return int(top_k)
