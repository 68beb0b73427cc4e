"""Similar items of a catalogue, by one of four measures of similarity.

- ``embedding``: cosine similarity of the item features, which semantic IDs are made from.
- ``neighbours``: how often the other item is near this item in training histories, from the
  neighbour counts of the model.
- ``semantic_id``: number of equal codes from the first level on, then the distance between the
  vectors that the codes stand for.
- ``retriever``: cosine similarity of the item vectors that the model learned.

Scores of all items are computed for a block of items at a time, so memory does not grow with the
square of the catalogue size.

Shapes: B items to find similar items for, N items of the catalogue, D dimensions, L levels, K
listed items.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.items import ItemTable
from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import ConfigError, DataError
from recgrit.models.model import Model
from recgrit.progress import progress_bar
from recgrit.recommender import check_top_k
from recgrit.semantic_ids.table import SemanticIdTable

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.quantization.autoencoder import Tokenizer

logger = logging.getLogger(__name__)

Way = Literal["embedding", "neighbours", "semantic_id", "retriever"]
WAYS: tuple[Way, ...] = get_args(Way)

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
# Function from item_idx [B] to similarities float32 [B, N], with -inf for items that are not
# similar at all.
Scorer = Callable[[Rows], Scores]

# Largest number of scores that are held at once, which is 64 MiB.
MAX_SCORES = 2**24
NOT_ALIKE = np.float32(-np.inf)


class SimilarItems:
    """Finds the most similar items in a catalogue.

    Args:
        items: Ids and titles of the items.
        score: Function that returns the similarity of items to all items.
        listed: Items that may be listed as similar, bool ``[N]``. None allows all items. Similar
            items can also be found for items that may not be listed.
    """

    def __init__(
        self,
        items: SemanticIdTable | ItemTable,
        score: Scorer,
        *,
        listed: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.items = items
        self.score = score
        self.listed = np.ones(len(items), dtype=bool) if listed is None else listed

    def find(self, rows: Rows, *, top_k: int) -> tuple[npt.NDArray[np.int32], Scores]:
        """Return the items that are most similar to each given item.

        The best items come first, and ties are in the order of the catalogue.

        Args:
            rows: item_idx of the given items, int64 ``[B]``.
            top_k: Number of items to list per given item, K.

        Returns:
            item_idx int32 ``[B, K]``, with `NO_ITEM` at the end of short lists, and similarities
            float32 ``[B, K]``. An item is never listed as similar to itself.
        """
        scores = np.where(self.listed, self.score(rows), NOT_ALIKE)
        scores[np.arange(len(rows)), rows] = NOT_ALIKE
        num = min(top_k, scores.shape[1])
        found = np.full((len(rows), num), NO_ITEM, dtype=np.int32)
        best = np.full((len(rows), num), NOT_ALIKE, dtype=np.float32)
        # Only items with at least the K-th highest score of a row have to be sorted.
        least = np.partition(scores, -num, axis=1)[:, -num]
        for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
            candidates = np.flatnonzero((values >= bound) & (values > NOT_ALIKE))
            order = candidates[np.argsort(-values[candidates], kind="stable")[:num]]
            found[row, : len(order)] = order
            best[row, : len(order)] = values[order]
        return found, best

    def of(self, item_id: str, *, top_k: int = 10) -> pl.DataFrame:
        """Return the items that are most similar to one item.

        Args:
            item_id: External id of the item.
            top_k: Largest number of items to return. The list is shorter if fewer items are
                similar.

        Returns:
            A table with the columns rank, item_id, title, semantic_id if the catalogue has semantic
            IDs, and score.

        Raises:
            DataError: The item is unknown, or the measure knows nothing about it.
        """
        row = self.items.index[item_id]
        found, best = self.find(np.array([row]), top_k=min(check_top_k(top_k), len(self.items)))
        kept = found[0] != NO_ITEM
        if not kept.any():
            raise DataError(
                f"Item {item_id!r} has no similar items of this kind: it has no vector, or no "
                "neighbours. Try another kind with by=, or --by."
            )
        names = self.items.to_polars()
        columns = [c for c in ("item_id", "title", "semantic_id") if c in names.columns]
        return names.select(pl.col(columns).gather(found[0][kept])).select(
            pl.Series("rank", np.arange(1, kept.sum() + 1, dtype=np.int32)),
            *columns,
            pl.Series("score", best[0][kept]),
        )

    def list_all(self, *, top_k: int = 10) -> Iterator[pl.DataFrame]:
        """Yield the most similar items of each listed item, some items at a time.

        A progress bar is shown. Items that the measure knows nothing about get no list, and their
        number is logged.

        Args:
            top_k: Largest number of items in each list.

        Returns:
            Tables with the columns item_id, rank, similar_item_id and score.
        """
        top_k = min(check_top_k(top_k), len(self.items))
        rows, ids = np.flatnonzero(self.listed), self.items.to_polars()["item_id"]
        size = max(1, MAX_SCORES // max(1, len(self.items)))
        num_without = 0
        with progress_bar("similar items", len(rows)) as bar:
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                found, best = self.find(some, top_k=top_k)
                places, ranks = np.nonzero(found != NO_ITEM)
                num_without += int(np.sum(~(found != NO_ITEM).any(axis=1)))
                yield pl.DataFrame(
                    {
                        "item_id": ids.gather(some[places]),
                        "rank": (ranks + 1).astype(np.int32),
                        "similar_item_id": ids.gather(found[places, ranks]),
                        "score": best[places, ranks],
                    }
                )
                bar.advance(len(some))
        if num_without:
            logger.warning(
                "%d of %d items have no similar items and get no list", num_without, len(rows)
            )


@dataclass(frozen=True)
class Ways:
    """The parts of a run or bundle from which measures of similarity can be made.

    Each part is loaded only when a measure needs it.

    Args:
        place: Name of the run or bundle, for messages.
        model: Function that loads the model. None if there is no model.
        features: Function that loads the item features, ``[N, F]`` for F dimensions. None if there
            are no features.
        ids: Function that loads the ID table and its tokenizer, which is None for published IDs.
            None if there are no semantic IDs.
    """

    place: str
    model: Callable[[], Model] | None
    features: Callable[[], npt.NDArray[np.float32]] | None
    ids: Callable[[], tuple[SemanticIdTable, Tokenizer | None]] | None

    def make(self, by: str) -> Scorer:
        """Return the function that scores the similarity of items by one measure.

        Args:
            by: Name of the measure, one of `WAYS`.

        Raises:
            ConfigError: There is no such measure, or the run or bundle lacks what it needs.
        """
        if by not in WAYS:
            close = difflib.get_close_matches(str(by), WAYS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"There is no kind of similarity {by!r:.40}.{hint} There are {', '.join(WAYS)}."
            )
        scorer = self._find(by)
        if scorer is None:
            others = [way for way in WAYS if way != by and self._find(way) is not None]
            there = (
                f"There are {', '.join(others)}."
                if others
                else "No other kind is available either."
            )
            raise ConfigError(f"{self.place} cannot find similar items by {by}. {there}")
        return scorer

    def _find(self, by: Way) -> Scorer | None:
        if by == "embedding":
            return None if self.features is None else score_cosines(self.features())
        if by == "semantic_id":
            return None if self.ids is None else score_ids(*self.ids())
        if self.model is None:
            return None
        if by == "neighbours":
            table = self.model().neighbour_table()
            return None if table is None or not table.nnz else score_table(table)
        vectors = self.model().item_vectors()
        return None if vectors is None else score_cosines(vectors)


def score_cosines(vectors: npt.NDArray[np.float32]) -> Scorer:
    """Return a function that scores the similarity of items by cosine similarity.

    A vector of zeros is similar to no item.

    Args:
        vectors: Vector of each item, float32 ``[N, D]``.

    >>> vectors = np.array([[1, 0], [2, 0], [0, 3], [0, 0]], dtype=np.float32)
    >>> score_cosines(vectors)(np.array([0])).tolist()
    [[1.0, 1.0, 0.0, -inf]]
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units, is_there = vectors / np.where(lengths > 0, lengths, 1), lengths[:, 0] > 0

    def score(rows: Rows) -> Scores:
        cosines = units[rows] @ units.T
        return np.where(is_there[rows, None] & is_there, cosines, NOT_ALIKE).astype(np.float32)

    return score


def score_table(table: csr_array) -> Scorer:
    """Return a function that looks up the similarity of items in a sparse table.

    Args:
        table: Similarity of items (columns) to items (rows), ``[N, N]``. Items without an entry are
            not similar.
    """

    def score(rows: Rows) -> Scores:
        values = table[rows].toarray().astype(np.float32)
        return np.where(values > 0, values, NOT_ALIKE).astype(np.float32)

    return score


def score_ids(table: SemanticIdTable, tokenizer: Tokenizer | None) -> Scorer:
    """Return a function that scores the similarity of items by their semantic IDs.

    The score is the number of equal codes from the first level on, plus ``1 / (1 + d)``, where d is
    the distance between the vectors that the codes stand for. One more equal code therefore counts
    more than any distance. The level that only tells items apart is ignored.

    Args:
        table: Semantic IDs of the items.
        tokenizer: Tokenizer that turns codes into vectors. None for published IDs, for which only
            the number of equal codes counts.
    """
    from scipy.spatial.distance import cdist

    level = table.disambiguation_level
    codes = table.codes if level is None else np.delete(table.codes, level, axis=1)
    vectors = None if tokenizer is None else _decode(codes, tokenizer)

    def score(rows: Rows) -> Scores:
        shared = np.zeros((len(rows), len(codes)), dtype=np.float32)
        same = np.ones(shared.shape, dtype=bool)
        for of_level in codes.T:
            same &= of_level[rows, None] == of_level
            shared += same
        if vectors is None:
            return shared
        # cdist subtracts vectors, so equal vectors have a distance of exactly 0, and ties keep the
        # order of items.
        nearness = 1 / (1 + cdist(vectors[rows], vectors))
        return np.asarray(shared + nearness, dtype=np.float32)

    return score


def _decode(codes: npt.NDArray[np.int32], tokenizer: Tokenizer) -> npt.NDArray[np.float32]:
    """Return the vectors that codes ``[N, L]`` stand for, float32 ``[N, D]``."""
    import torch

    vectors = tokenizer.quantizer.decode(torch.from_numpy(codes.astype(np.int64)))
    return np.asarray(vectors.float().numpy(), dtype=np.float32)
