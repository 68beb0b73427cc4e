"""Between external ids and dense indices: filters and histories in, named lists out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.splits import SequenceSplit
from recgrit.retrieval.ranking import Ranker
from recgrit.retrieval.recommend import recommend_items
from recgrit.semantic_ids.table import SemanticIdTable

logger = logging.getLogger(__name__)


def find_allowed(
    table: SemanticIdTable, allowed_items: Collection[str] | None, blocked_items: Collection[str]
) -> npt.NDArray[np.bool_]:
    """Which items may be listed, bool ``[N]``.

    Args:
        table: The catalogue.
        allowed_items: External ids of the only items that may be listed; None for all.
        blocked_items: External ids of items that are never listed.
    """
    allowed = np.full(len(table), allowed_items is None)
    if allowed_items is not None:
        allowed[_find_items(table, allowed_items, "allowed")] = True
    allowed[_find_items(table, blocked_items, "blocked")] = False
    return allowed


def _find_items(
    table: SemanticIdTable, item_ids: Collection[str], what: str
) -> npt.NDArray[np.int64]:
    """Where these items stand in the catalogue; unknown ones are told and passed over."""
    found = table.find_items(item_ids)
    if len(found) < len(item_ids):
        logger.warning(
            "%d of %d %s items are not in the catalogue",
            len(item_ids) - len(found),
            len(item_ids),
            what,
        )
    return found


def recommend_histories(
    ranker: Ranker,
    table: SemanticIdTable,
    histories: Mapping[str, Sequence[str]],
    *,
    top_k: int,
    exclude_seen: bool,
) -> pl.DataFrame:
    """Named lists after histories of external ids, by a name for each history.

    Items that the catalogue does not hold are passed over, and their number is told; so are names
    whose histories hold no known item, which get no list.

    Returns:
        Columns user_id, rank, item_id, title, semantic_id, score (log P of the item, and what
        neighbours that boost scores add).
    """
    known = [table.find_items(items) for items in histories.values()]
    num_unknown = sum(map(len, histories.values())) - sum(map(len, known))
    if num_unknown:
        logger.warning("%d items of the histories are not in the catalogue", num_unknown)
    named = [(name, items) for name, items in zip(histories, known, strict=True) if len(items)]
    if len(named) < len(histories):
        logger.warning("%d histories hold no known item", len(histories) - len(named))
    split = SequenceSplit.of_histories(
        np.concatenate([np.empty(0), *(items for _, items in named)]).astype(np.int32),
        np.cumsum([0, *(len(items) for _, items in named)]),
        len(table),
    )
    found = recommend_items(
        ranker, split, "all", np.arange(len(named)), top_k=top_k, masked=exclude_seen
    )
    names = pl.Series([name for name, _ in named], dtype=pl.String)
    return name_lists(table, found.to_polars(), names)


def name_lists(table: SemanticIdTable, found: pl.DataFrame, user_ids: pl.Series) -> pl.DataFrame:
    """External ids, titles and semantic IDs in place of indices.

    Args:
        table: The catalogue.
        found: As `Recommendations.to_polars` has it.
        user_ids: Row i belongs to ``user_idx`` i.
    """
    items = table.to_polars().select("item_id", "title", "semantic_id")
    return pl.concat(
        [
            user_ids.alias("user_id").to_frame().select(pl.all().gather(found["user_idx"])),
            found.select("rank"),
            items.select(pl.all().gather(found["item_idx"])),
            found.select("score"),
        ],
        how="horizontal",
    )
