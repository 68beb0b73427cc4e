"""The class `Recommender`: a model, the items that it ranks, and filters.

Runs, bundles and the MLflow model all return this class. Its lists have external ids and titles.
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
# Number of users without a history whose lists are made at once.
POPULAR_USERS = 65_536

# What a list is based on. "model": the model, after the history of a user that it was trained with.
# "history": the model, after any other history. "popular": the number of interactions of each item
# in training.
Source = Literal["model", "history", "popular"]
Fallback = Literal["popular"]


class Recommender:
    """Recommends items to the users of a split, or after histories of external item ids.

    Args:
        model: Fitted model.
        items: Ids and titles of the items. It is an ID table if the model has semantic IDs.
        beam_width: Number of prefixes kept at each level of the beam search. Models without a
            search ignore it.
        listed: Items that may be recommended at all, bool ``[N]`` for N items. None allows all
            items.
        counts: Number of training interactions of each item, int64 ``[N]``. If events have types,
            only the types that are predicted count. None if the numbers are unknown; then there are
            no popular items to fall back on.
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
        """Return the model, ready to rank.

        Args:
            beam_width: Number of prefixes kept at each level. "exact" scores every item. None uses
                the recommender's own width.
            allowed_items: External ids of the only items that may be listed. A bare string is one
                id. None allows all items.
            blocked_items: External ids of items that are never listed.

        Raises:
            DataError: The filters leave no item.
        """
        blocked = list_ids(blocked_items, "blocked_items")
        if beam_width is None and allowed_items is None and not blocked:
            return self._unfiltered
        allowed = None if allowed_items is None else list_ids(allowed_items, "allowed_items")
        return self._build(beam_width, self._find_allowed(allowed, blocked))

    def popular(
        self, *, allowed_items: IdList | None = None, blocked_items: IdList = ()
    ) -> PopularityRanker:
        """Return a ranker by popularity, for users whose history holds no known item.

        Args:
            allowed_items: External ids of the only items that may be listed, as in `ranker`.
            blocked_items: External ids of items that are never listed, as in `ranker`.

        Raises:
            ConfigError: The recommender has no item counts.
            DataError: The filters leave no item.
        """
        if self.counts is None:
            raise ConfigError(
                "This recommender does not know how often items occur in training, so it has no "
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
        """Yield lists with ids and titles after the users' whole histories, some users at a time.

        Memory does not grow with the number of users.

        Args:
            split: Histories over the recommender's items.
            user_ids: External id of each user, by user_idx.
            users: user_idx of the users to make lists for. None makes lists for all users.
            ranker: Ranker from `ranker`. None uses one without filters.
            top_k: Number of items per user. If it is larger than the catalogue, all items are
                listed.
            exclude_seen: Filter seen items out of the lists.
            source: Value of the column ``source`` for users with a history: "model" if the model
                was trained with these users, else "history".
            popular: Ranker from `popular`, for users without a history. With None they get no list.

        Returns:
            Tables with the columns user_id, rank, item_id, title, semantic_id if the model has
            semantic IDs, score, and source. The score of a popular item is its number of training
            interactions.

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
        """Return lists after histories that need not be in the data.

        Items that the catalogue does not hold are ignored, and their number is logged. Histories
        without a known item get no list unless a ``fallback`` is given, and their number is logged.
        A model reads only the last items of a long history.

        Args:
            histories: External item ids, oldest first, by a name for each list. A bare string is
                one id. Nulls are ignored, and their number is logged.
            top_k: Number of items per list. If it is larger than the catalogue, all items are
                listed.
            beam_width: Number of prefixes kept at each level. None uses the recommender's own
                width.
            exclude_seen: Filter the items of the history out of the list.
            allowed_items: External ids of the only items that may be listed. A bare string is one
                id. None allows all items.
            blocked_items: External ids of items that are never listed.
            fallback: List to return if a history holds no known item. "popular" returns the most
                popular items, and None returns no list.

        Returns:
            A table with the columns of `list_users`. The column user_id has the names of the
            histories, and source is "history" or "popular".

        Raises:
            ConfigError: The fallback is unknown, or is needed without item counts.
            DataError: ``top_k`` is below 1, a history is no list of ids, or the filters leave no
                item.
        """
        check_fallback(fallback)
        if not isinstance(histories, Mapping):
            raise DataError(
                "Expected a dict of names and their histories, such as {'anyone': ['242', '51']}, "
                f"got a {type(histories).__name__}."
            )
        ranker = self.ranker(
            beam_width=beam_width, allowed_items=allowed_items, blocked_items=blocked_items
        )
        odd = [name for name in histories if not (isinstance(name, str) and is_text(name))]
        if odd:
            raise DataError(f"Names of histories must be text, got {odd[0]!r:.40}.")
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
        """Return lists of item_idx after histories of external item ids.

        The field ``users`` of the result holds the positions of the histories in ``histories``. A
        history without a known item has no list.

        Args:
            histories: External item ids of each history, oldest first. A bare string is one id.
                Nulls are ignored, and their number is logged.
            people: user_idx of each history's user, and -1 for users that the model was not trained
                with. None if no user is known.
            ranker: Ranker from `ranker`. None uses one without filters.
            top_k: Number of items per list. If it is larger than the catalogue, all items are
                listed.
            exclude_seen: Filter the items of the history out of the list.

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
            logger.warning("%d nulls in the histories are ignored", num_nulls)
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
        """Explain an item's score after a user's history, level by level of its semantic ID.

        Args:
            split: Histories over the recommender's items.
            user: Index of the user's sequence in ``split``.
            item_id: External id of the item. It need not be in the user's list, and filters are
                ignored.
            history: Part of the user's sequence to read. "valid" and "test" read the items before
                that target, and "all" reads all items.
            num_siblings: Number of other codes to show at each level, those with the best scores.
            num_titles: Number of titles to show for each code: the items below it with the most
                interactions.

        Returns:
            A table with one row per shown code, sorted by level and rank. Its columns are:

            - ``level``: Level of the semantic ID, from 0.
            - ``code``: Code at this level. At the last level of the search, all remaining codes.
            - ``chosen``: Whether the code is in the item's own ID.
            - ``rank``: Rank by score among the codes that can follow the prefix, from 1.
            - ``num_codes``: Number of codes that can follow the prefix.
            - ``probability``: Probability of the code given the prefix. The probabilities of the
              chosen codes multiply to the item's probability P.
            - ``neighbour_share``: Share of the probability of the prefix up to this code that comes
              from neighbour counts.
            - ``boost``: Additive bonus of the neighbours in the prefix's score. The item's score is
              log P plus the boost of its last code.
            - ``num_items``: Number of items below the code.
            - ``titles``: Titles of the most popular items below the code.

        Raises:
            ConfigError: The model does not walk a trie of semantic IDs.
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
        """Return lists as a table with external ids, titles and semantic IDs in place of indices.

        Args:
            found: Lists of item_idx.
            user_ids: External id of each user, by user_idx.
            source: What the lists are based on, for the column ``source``.
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
        """Return a mask of the items that may be listed, bool ``[N]``."""
        allowed = np.full(len(self.items), allowed_items is None)
        if allowed_items is not None:
            allowed[self._find_items(allowed_items, "allowed")] = True
        allowed[self._find_items(blocked_items, "blocked")] = False
        return allowed if self.listed is None else allowed & self.listed

    def _find_items(self, item_ids: list[str], what: str) -> npt.NDArray[np.int64]:
        """Return the item_idx of external ids; unknown ids are ignored and counted in the log."""
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
    """Return the items of one list without the `NO_ITEM` entries at its end."""
    kept: npt.NDArray[np.int32] = row[row != NO_ITEM]
    return kept


def list_popular(
    ranker: PopularityRanker, users: npt.NDArray[np.int64], top_k: int
) -> Recommendations:
    """Return the same list for all of these users: the most popular items.

    The score of an item is its number of interactions in training.

    Args:
        ranker: Ranker by popularity.
        users: user_idx of each list.
        top_k: Number of items per list.
    """
    best = ranker.order[:top_k]
    shape = (len(users), len(best))
    return Recommendations(
        users.astype(np.int64),
        np.broadcast_to(best.to(torch.int32).numpy(), shape),
        np.broadcast_to(ranker.counts[best].float().numpy(), shape),
    )


def check_fallback(fallback: object) -> None:
    """Refuse an unknown fallback.

    Raises:
        ConfigError: The fallback is neither "popular" nor None.
    """
    if fallback not in (None, "popular"):
        raise ConfigError(f"fallback must be 'popular', or left out, got {fallback!r:.40}.")


def check_top_k(top_k: object) -> int:
    """Check the number of items per list, and return it as an int.

    Raises:
        DataError: ``top_k`` is not a whole number of at least 1.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise DataError(f"top_k must be at least 1, got {top_k!r:.40}.")
    return int(top_k)
