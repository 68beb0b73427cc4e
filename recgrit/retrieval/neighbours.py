"""Item-to-item neighbour counts that are combined with the transformer's scores.

A transformer trained with much dropout generalises well but remembers rare pairs of items badly.
Counts do the reverse. Language models gain from the same combination: Khandelwal et al. (ICLR 2020)
mix the model's distribution with one over the nearest neighbours of its state in the training data.
Here the neighbours are those of a history's last items. This needs a few small tables instead of a
state for every training target. An item has neighbours of three kinds:

- ``near``: items close to it in training histories, in any order;
- ``next``: items that directly follow it in training histories;
- ``alike``: items that share rare words with it, such as a brand. Vectors of texts blur such words.
  An untrained graph of transitions and texts does as well as many trained models (GraphRec, arXiv
  2605.07125).

The strength of each kind is fitted on validation targets (`recgrit.retrieval.strengths`). An item
without interactions has no counts, so it gets the neighbours of its most similar items.

Shapes: B users, T history items, N items, J neighbours, E entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.data.splits import SequenceSplit
from recgrit.embedding.cooccurrence import count_pairs
from recgrit.embedding.likeness import Likeness
from recgrit.embedding.words import keep_largest
from recgrit.ranking import Histories
from recgrit.retrieval.config import NeighbourKind
from recgrit.retrieval.leaves import LeafSets, LeafWeights

if TYPE_CHECKING:
    from scipy.sparse import csr_array

KINDS: tuple[NeighbourKind, ...] = get_args(NeighbourKind)
# Maximum number of neighbours of each kind to keep per item.
NUM_NEIGHBOURS: dict[NeighbourKind, int] = {"near": 50, "next": 20, "alike": 100}
# Both values were chosen on validation targets of Beauty and of MovieLens-100K.
WINDOW = 20
SHRINKAGE = 10.0
# Maximum number of a history's last items whose neighbours are used. Each counts DISCOUNT times as
# much as the item after it.
MAX_ASKED = 10
DISCOUNT = 0.8
# Exponent of the summed similarities. Similarities are based on few users. Squares keep the many
# small ones from outweighing the few large ones.
SHARPNESS = 2
# Share of a kind's total weight at which its bonus becomes noticeable (log 2 at strength 1).
COUNTED_FROM: dict[NeighbourKind, float] = {"near": 1e-5, "next": 1e-4}
# Number of most similar items whose neighbours an item without interactions gets, and maximum
# number of items without interactions among the neighbours of an item with counts.
NUM_MOST_ALIKE = 20
NUM_STAND_INS = 5


@dataclass(frozen=True)
class Strengths:
    """Weights of the neighbour terms that are added to a model's scores.

    Args:
        mixture: Mixture weight of the ``near`` neighbours' distribution in the probability of an
            item.
        near: Scale of the additive bonus for ``near`` items. An item with the share s of their
            total weight gets ``near * log(1 + s / COUNTED_FROM["near"])`` on top of its log
            probability. Items that both the model and the counts find likely then come first, as in
            a product of experts (Hinton, Neural Computation 2002). In a mixture, one of the two is
            enough.
        next: Scale of the additive bonus for items that directly followed the history's items in
            training. The bonus has the same form as that of ``near``.
        alike: Scale of the additive bonus for items with similar texts. The bonus is the mean
            cosine similarity with the history's items times this scale.
    """

    mixture: float = 0.1
    near: float = 0.2
    next: float = 0.05
    alike: float = 8.0

    def only(self, kinds: Sequence[NeighbourKind]) -> Strengths:
        """Return a copy with the weights of all kinds outside ``kinds`` set to zero."""
        none: dict[str, float] = {kind: 0.0 for kind in KINDS if kind not in kinds}
        return replace(self, **none if "near" in kinds else none | {"mixture": 0.0})


def find_similar(
    split: SequenceSplit, *, num_neighbours: int, window: int, shrinkage: float
) -> csr_array:
    """Return the largest similarities of each item (row) with other items, float64 ``[N, N]``.

    The similarity is a cosine: the number of times that two items are near each other in training
    parts, divided by the square root of the product of their counts. ``shrinkage`` is added to the
    divisor, so that similarities based on few counts are close to 0 (Sarwar et al., WWW 2001).

    Args:
        split: Sequences to count. Only their training histories are read.
        num_neighbours: Number of most similar items to keep per item.
        window: Maximum distance, in positions of a history, at which two items count as a pair.
        shrinkage: Number that is added to the divisor.
    """
    together = count_pairs(split, window)
    counts = split.train_item_counts()
    for item in range(split.num_items):
        entries = slice(together.indptr[item], together.indptr[item + 1])
        others = together.indices[entries]
        together.data[entries] /= np.sqrt(counts[item] * counts[others]) + shrinkage
    return keep_largest(together, num_neighbours)


def find_next(split: SequenceSplit) -> csr_array:
    """Return the share of each item (column) among the items that directly follow another (row).

    Returns:
        Shares, float64 ``[N, N]``. A row sums to 1, or to 0 for an item that no other item follows.
    """
    from scipy.sparse import coo_array, csr_array, diags_array

    mask = split.train_mask()
    items = np.asarray(split.items)[mask]
    users = np.repeat(np.arange(split.num_sequences), np.diff(split.offsets))[mask]
    counts = (users[1:] == users[:-1]) & (items[1:] != items[:-1])
    before, after = items[:-1][counts], items[1:][counts]
    shape = (split.num_items, split.num_items)
    together = csr_array(coo_array((np.ones(len(before)), (before, after)), shape=shape))
    return csr_array(diags_array(1 / np.maximum(together.sum(axis=1), 1)) @ together)


def _check_items(neighbours: nn.Module, _: object) -> None:
    """Check after loading that all neighbours are items of the catalogue.

    Raises:
        ValueError: A checkpoint names an item that the catalogue does not have.
    """
    assert isinstance(neighbours, ItemNeighbours)
    for kind in neighbours.kinds:
        items = getattr(neighbours, f"{kind}_items")
        if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < neighbours.num_items:
            raise ValueError(
                f"neighbours have the item numbers {int(items.min())} to {int(items.max())}, but "
                f"there are {neighbours.num_items} items"
            )


class ItemNeighbours(nn.Module):
    """The neighbours of each item, which add terms to the scores of items after a history.

    The neighbours are part of the retriever's weights, so that a trained retriever recommends
    without the training sequences.

    Args:
        num_items: Number of items N in the catalogue. The tables are empty until `count` or a
            checkpoint fills them.
        kinds: Kinds of neighbours to use.
        strengths: Initial weights of the neighbour terms, until they are fitted or loaded. None
            uses the defaults of `Strengths`.
    """

    fitted: Tensor

    def __init__(
        self,
        num_items: int,
        kinds: Sequence[NeighbourKind] = KINDS,
        *,
        strengths: Strengths | None = None,
    ) -> None:
        super().__init__()
        self.num_items = num_items
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        for kind in self.kinds:
            shape = (num_items, NUM_NEIGHBOURS[kind])
            self.register_buffer(f"{kind}_items", torch.zeros(shape, dtype=torch.int32))
            self.register_buffer(f"{kind}_values", torch.zeros(shape))
        start = (strengths or Strengths()).only(self.kinds)
        self.register_buffer("fitted", torch.tensor(astuple(start), dtype=torch.float64))
        self.register_load_state_dict_post_hook(_check_items)  # type: ignore[no-untyped-call]

    @property
    def strengths(self) -> Strengths:
        """Weights of the neighbour terms."""
        return Strengths(*self.fitted.tolist())

    @strengths.setter
    def strengths(self, strengths: Strengths) -> None:
        self.fitted.copy_(torch.tensor(astuple(strengths), dtype=torch.float64))

    def count(self, split: SequenceSplit, likeness: Likeness | None = None) -> None:
        """Count the neighbours of all items in the training histories of sequences.

        Args:
            split: Sequences to count.
            likeness: Similarity of the items. With None, items without interactions get no
                neighbours, and no item gets ``alike`` neighbours.
        """
        everything = np.arange(self.num_items)
        has_counts = split.train_item_counts() > 0
        for kind in self.kinds:
            num_kept = NUM_NEIGHBOURS[kind]
            if kind == "near":
                found = find_similar(
                    split, num_neighbours=num_kept, window=WINDOW, shrinkage=SHRINKAGE
                )
            elif kind == "next":
                found = keep_largest(find_next(split), num_kept)
            elif likeness is not None:
                found = likeness.find(everything, everything, num_kept)
            else:
                continue
            self._put(kind, found)
        if likeness is not None:
            self._stand_in(likeness, has_counts, ~has_counts)

    def add_items(
        self, likeness: Likeness, known: npt.NDArray[np.bool_], added: npt.NDArray[np.bool_]
    ) -> None:
        """Give neighbours to items that were added after the counting.

        Args:
            likeness: Similarity of all items.
            known: Items that existed at the counting, bool ``[N]``.
            added: Items to give neighbours to, bool ``[N]``. None of them is in ``known``.
        """
        from scipy.sparse import csr_array, diags_array

        self._stand_in(likeness, known, added)
        if "alike" in self.kinds and added.any():
            new, num_kept = np.flatnonzero(added), NUM_NEIGHBOURS["alike"]
            of_new = self._spread(likeness.find(new, np.flatnonzero(known | added), num_kept), new)
            of_known = diags_array(known.astype(np.float64)) @ of_new.T
            together = csr_array(self._table("alike") + of_new + of_known)
            self._put("alike", keep_largest(together, num_kept))

    def _stand_in(
        self, likeness: Likeness, known: npt.NDArray[np.bool_], added: npt.NDArray[np.bool_]
    ) -> None:
        """Give items without counts the neighbours of the most similar items that have counts.

        For ``near``, the similarity of such an item to each of its most similar items is their
        cosine times the typical similarity of a counted item to its nearest neighbour. Its
        similarity to all other items is the mean over its most similar items, weighted by cosines.
        For ``next``, the item follows, and is followed by, the same items as its most similar
        items. A counted item gets at most `NUM_STAND_INS` items without counts as neighbours, so
        that they do not displace counted neighbours.

        Args:
            likeness: Similarity of all items.
            known: Items that have counts, bool ``[N]``.
            added: Items to give neighbours to, bool ``[N]``.
        """
        from scipy.sparse import csr_array, diags_array

        new, others = np.flatnonzero(added), np.flatnonzero(known)
        if not len(new) or not len(others):
            return
        alike = self._spread(likeness.find(new, others, NUM_MOST_ALIKE), new)
        normalized = diags_array(1 / np.maximum(alike.sum(axis=1), 1e-12)) @ alike
        for kind in self.kinds:
            if kind == "alike":
                continue
            counted = self._table(kind)
            rows = csr_array(normalized @ counted)
            columns = csr_array(counted @ normalized.T)
            if kind == "near":
                nearest = counted.max(axis=1).toarray().ravel()
                typical = float(nearest[nearest > 0].mean()) if nearest.any() else 0.0
                rows = csr_array(typical * alike + rows)
                columns = csr_array(rows.T)
            of_known = keep_largest(columns, NUM_STAND_INS)
            self._put(
                kind, keep_largest(csr_array(counted + rows + of_known), NUM_NEIGHBOURS[kind])
            )

    def _spread(self, rows: csr_array, items: npt.NDArray[np.int64]) -> csr_array:
        """Place rows ``[n, N]`` of n items into a table of all items, float64 ``[N, N]``."""
        from scipy.sparse import csr_array

        entries = rows.tocoo()
        places = (items[entries.coords[0]], entries.coords[1])
        shape = (self.num_items, self.num_items)
        return csr_array((entries.data.astype(np.float64), places), shape=shape)

    def _table(self, kind: NeighbourKind) -> csr_array:
        """Return the neighbours of a kind as a sparse table, float64 ``[N, N]``."""
        from scipy.sparse import csr_array

        items: Tensor = getattr(self, f"{kind}_items")
        values: Tensor = getattr(self, f"{kind}_values")
        starts = items.shape[1] * np.arange(self.num_items + 1)
        numbers = values.cpu().numpy().ravel().astype(np.float64)
        entries = (numbers, items.cpu().numpy().ravel(), starts)
        table = csr_array(entries, shape=(self.num_items, self.num_items))
        table.sum_duplicates()
        table.eliminate_zeros()
        return table

    def _put(self, kind: NeighbourKind, table: csr_array) -> None:
        """Replace all neighbours of a kind by the rows of a table.

        Args:
            kind: Kind of neighbours.
            table: Sparse table ``[N, N]`` with at most ``NUM_NEIGHBOURS[kind]`` entries per row.
        """
        items: Tensor = getattr(self, f"{kind}_items")
        values: Tensor = getattr(self, f"{kind}_values")
        rows = np.repeat(np.arange(self.num_items), np.diff(table.indptr))
        columns = np.arange(table.nnz) - table.indptr[rows]
        items.zero_()
        values.zero_()
        items[rows, columns] = torch.from_numpy(table.indices.astype(np.int32))
        values[rows, columns] = torch.from_numpy(table.data.astype(np.float32))

    def nearest_table(self) -> csr_array | None:
        """Return the table of ``near`` items, or of the first kind that is used if ``near`` is not.

        Returns:
            Sparse float64 ``[N, N]``, or None if no kind is used.
        """
        return self._table(self.kinds[0]) if self.kinds else None

    def weigh(
        self,
        histories: Histories,
        leaf_of: Tensor,
        seen: LeafSets,
        *,
        fixed_shapes: bool = False,
    ) -> LeafWeights:
        """Return the mixture weight and additive bonus of each leaf that neighbours a history.

        Each leaf of the trie is an item. The mixture weights of one history sum to the mixture
        strength, or to 0 if no item is ``near`` its items. Items of the history itself get nothing,
        because the model learns whether users return to them.

        Args:
            histories: Histories of B users.
            leaf_of: Leaf of each item ``[N]``.
            seen: Leaves of each history.
            fixed_shapes: Whether the number of entries must not depend on the data. On an
                accelerator no number then has to be read back to the host.
        """
        leaves, shares = self._share(histories, leaf_of, seen, fixed_shapes=fixed_shapes)
        mixture, *scales = self.fitted.unbind()  # Tensors: no number is read back from a GPU.
        bonuses = torch.zeros_like(leaves, dtype=torch.float64)
        for kind, scale in zip(KINDS, scales, strict=True):
            if kind in shares:
                bonuses += scale * bonus_of(kind, shares[kind])
        weights = mixture * shares.get("near", torch.zeros_like(bonuses))
        return LeafWeights(leaves, weights, bonuses.float())

    def _share(
        self, histories: Histories, leaf_of: Tensor, seen: LeafSets, *, fixed_shapes: bool = False
    ) -> tuple[Tensor, dict[NeighbourKind, Tensor]]:
        """Return the share of each neighbouring leaf in the neighbours of a history, by kind.

        Shapes: N items, E entries per user.

        Args:
            histories: Histories of B users.
            leaf_of: Leaf of each item ``[N]``.
            seen: Leaves of each history.
            fixed_shapes: Whether the number of entries must not depend on the data.

        Returns:
            Leaves, int64 ``[B, E]``, ascending in each row; and shares by kind, float64 ``[B, E]``.
            If a leaf is repeated, its first entry has its whole share and the others have 0. The
            shares of ``near`` sum to 1, those of ``next`` to at most 1, and those of ``alike`` are
            mean cosines.
        """
        device = leaf_of.device
        steps = torch.arange(MAX_ASKED, device=device)
        positions = histories.lengths.unsqueeze(-1) - 1 - steps  # The last item first.
        asked = histories.items.gather(1, positions.clamp_min(0))
        trust = torch.where(positions >= 0, DISCOUNT**steps, 0.0).double()
        found = {
            kind: (
                leaf_of[getattr(self, f"{kind}_items")[asked]].flatten(1),
                (getattr(self, f"{kind}_values")[asked] * trust.unsqueeze(-1)).flatten(1),
            )
            for kind in self.kinds
        }
        ordered, order = torch.cat([places for places, _ in found.values()], dim=1).sort(dim=-1)
        # The leaves of a row are numbered in ascending order. Each gets one entry, and the last
        # leaf fills the remaining entries.
        is_next = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
        numbers = is_next.cumsum(dim=-1)
        size = ordered.shape[1] if fixed_shapes else int(numbers[:, -1].max()) + 1
        leaves = ordered[:, -1:].repeat(1, size).scatter_(1, numbers, ordered)
        places = torch.empty_like(order).scatter_(1, order, numbers)
        rows = torch.arange(len(leaves), device=device).unsqueeze(-1)
        is_new = seen.count(rows, leaves, leaves + 1) == 0
        shares: dict[NeighbourKind, Tensor] = {}
        widths = [values.shape[1] for _, values in found.values()]
        for (kind, (_, values)), entries in zip(
            found.items(), places.split(widths, dim=1), strict=True
        ):
            sums = torch.zeros_like(leaves, dtype=values.dtype).scatter_add_(1, entries, values)
            sums = sums * is_new
            if kind == "near":
                sharp = sums**SHARPNESS
                totals = sharp.sum(dim=-1, keepdim=True)
                shares[kind] = sharp / totals.clamp_min(torch.finfo(totals.dtype).tiny)
            else:
                shares[kind] = sums / trust.sum(dim=-1, keepdim=True)
        return leaves, shares

    def share_of_items(
        self, histories: Histories, items: Tensor
    ) -> tuple[dict[NeighbourKind, Tensor], Tensor]:
        """Return the share of given items in the neighbours of each history, by kind.

        Shapes: K given items per user.

        Args:
            histories: Histories of B users.
            items: Items ``[B, K]``. `NO_ITEM` gets the share 0.

        Returns:
            Shares by kind, float64 ``[B, K]``; and whether any item is near each history, bool
            ``[B, 1]``.
        """
        everything = torch.arange(self.num_items, device=items.device)
        seen = LeafSets.build(histories.items, histories.present, self.num_items)
        leaves, shares = self._share(histories, everything, seen)
        places = torch.searchsorted(leaves, items).clamp_max(leaves.shape[1] - 1)
        is_there = leaves.gather(1, places) == items
        found = {kind: share.gather(1, places) * is_there for kind, share in shares.items()}
        return found, shares.get("near", is_there).any(dim=-1, keepdim=True)


def bonus_of(kind: NeighbourKind, share: Tensor) -> Tensor:
    """Return the additive bonus of a share at strength 1.

    The bonus of ``near`` and ``next`` is log(1 + share / ``COUNTED_FROM[kind]``). That of ``alike``
    is the share itself, a mean cosine.

    Args:
        kind: Kind of neighbours.
        share: Shares from `ItemNeighbours.share_of_items`, of any shape.
    """
    unit = COUNTED_FROM.get(kind)
    return share if unit is None else torch.log1p(share / unit)
