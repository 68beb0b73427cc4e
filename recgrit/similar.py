"""Items like an item, by one of four ways to tell.

- ``embedding``: cosine of the item features, the vectors that semantic IDs are made of;
- ``neighbours``: what stands near the item in training histories, as counted beside the model;
- ``semantic_id``: codes shared from the first on, then the distance of what the codes stand for;
- ``retriever``: cosine of the vectors that the model learned of items.

Scores of all items are made for some items at a time, so that memory does not grow with the square
of the catalogue.

Shapes: B items asked for, N items, D dimensions, L levels, K items listed.
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
# float32 [B, N] of items [B]; -inf for what is not like an item at all.
Scorer = Callable[[Rows], Scores]

# Scores that are held at once: 64 MiB of them.
MAX_SCORES = 2**24
NOT_ALIKE = np.float32(-np.inf)


class SimilarItems:
    """Finds the items of a catalogue that are most like others.

    Args:
        items: What the items are called.
        score: How alike items are.
        listed: bool ``[N]``, the items that may be listed; None for all. Others can be asked for.
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
        """The items most like each of some items, best first, ties in item order.

        Args:
            rows: int64 ``[B]``, item_idx.
            top_k: K.

        Returns:
            item_idx int32 ``[B, K]``, `NO_ITEM` at the end of short lists; scores float32
            ``[B, K]``. An item is never like itself.
        """
        scores = np.where(self.listed, self.score(rows), NOT_ALIKE)
        scores[np.arange(len(rows)), rows] = NOT_ALIKE
        num = min(top_k, scores.shape[1])
        found = np.full((len(rows), num), NO_ITEM, dtype=np.int32)
        best = np.full((len(rows), num), NOT_ALIKE, dtype=np.float32)
        # The score of the last item of each list; all that reach it are sorted.
        least = np.partition(scores, -num, axis=1)[:, -num]
        for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
            candidates = np.flatnonzero((values >= bound) & (values > NOT_ALIKE))
            order = candidates[np.argsort(-values[candidates], kind="stable")[:num]]
            found[row, : len(order)] = order
            best[row, : len(order)] = values[order]
        return found, best

    def of(self, item_id: str, *, top_k: int = 10) -> pl.DataFrame:
        """The items most like one.

        Args:
            item_id: Its external id.
            top_k: How many; fewer where fewer are like it.

        Returns:
            Columns rank, item_id, title, semantic_id where the catalogue has them, and score.

        Raises:
            DataError: The item is unknown, or nothing is known of it.
        """
        row = self.items.index[item_id]
        found, best = self.find(np.array([row]), top_k=min(check_top_k(top_k), len(self.items)))
        kept = found[0] != NO_ITEM
        if not kept.any():
            raise DataError(
                f"Nothing is known by which the item {item_id!r} would be like others: it has no "
                "vector, or stands near none. Try another way with by=, or --by."
            )
        names = self.items.to_polars()
        columns = [c for c in ("item_id", "title", "semantic_id") if c in names.columns]
        return names.select(pl.col(columns).gather(found[0][kept])).select(
            pl.Series("rank", np.arange(1, kept.sum() + 1, dtype=np.int32)),
            *columns,
            pl.Series("score", best[0][kept]),
        )

    def list_all(self, *, top_k: int = 10) -> Iterator[pl.DataFrame]:
        """The items most like each listed item, some items at a time, with a progress bar.

        Items that nothing is known of get no list; their number is logged.

        Args:
            top_k: Items of each list at most.

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
            logger.warning("%d of %d items are like no other: no list", num_without, len(rows))


@dataclass(frozen=True)
class Ways:
    """By what a catalogue can tell similar items; each part is loaded when it is asked for.

    Args:
        place: What messages call it.
        model: Loads the model; None if there is none.
        features: Likewise, of the items, ``[N, F]``.
        ids: Likewise, of the ID table and the tokenizer that made it, None where IDs are published.
    """

    place: str
    model: Callable[[], Model] | None
    features: Callable[[], npt.NDArray[np.float32]] | None
    ids: Callable[[], tuple[SemanticIdTable, Tokenizer | None]] | None

    def make(self, by: str) -> Scorer:
        """How alike items are by one of the ways.

        Raises:
            ConfigError: There is no such way, or not in this catalogue.
        """
        if by not in WAYS:
            close = difflib.get_close_matches(str(by), WAYS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"No way {by!r:.40} to tell similar items.{hint} There are {', '.join(WAYS)}."
            )
        scorer = self._find(by)
        if scorer is None:
            others = [way for way in WAYS if way != by and self._find(way) is not None]
            there = f"There are {', '.join(others)}." if others else "Nor by anything else."
            raise ConfigError(f"{self.place} cannot tell similar items by {by}. {there}")
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
    """Cosines of vectors ``[N, D]``; a vector of zeros is like nothing.

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
    """The entries of a sparse table ``[N, N]``; no entry is like nothing."""

    def score(rows: Rows) -> Scores:
        values = table[rows].toarray().astype(np.float32)
        return np.where(values > 0, values, NOT_ALIKE).astype(np.float32)

    return score


def score_ids(table: SemanticIdTable, tokenizer: Tokenizer | None) -> Scorer:
    """Levels shared from the first on, plus ``1 / (1 + d)`` for the distance d of the vectors.

    The whole part is the number of shared levels, or one more where all codes that mean something
    are the same: sharing a further code always counts for more than any distance.

    Args:
        table: The IDs.
        tokenizer: Has the vectors that codes stand for; None for published IDs, where all that
            share as much are equally alike.
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
        # By differences, so that equal vectors are at distance 0 and keep the order of items.
        nearness = 1 / (1 + cdist(vectors[rows], vectors))
        return np.asarray(shared + nearness, dtype=np.float32)

    return score


def _decode(codes: npt.NDArray[np.int32], tokenizer: Tokenizer) -> npt.NDArray[np.float32]:
    """What codes ``[N, L]`` stand for, float32 ``[N, D]``."""
    import torch

    vectors = tokenizer.quantizer.decode(torch.from_numpy(codes.astype(np.int64)))
    return np.asarray(vectors.float().numpy(), dtype=np.float32)
