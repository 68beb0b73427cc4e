"""Items that go with those of a history: counted, not generalised.

A transformer trained with much dropout generalises well and remembers rare pairs of items badly;
counts are the reverse. Language models gain from the same: Khandelwal et al. (ICLR 2020) mix the
model's distribution with one over the nearest neighbours of its state in the training data. Here
the neighbours are those of a history's last items, which needs a few small tables instead of a
state for every training target. An item has neighbours of three kinds:

- ``near``: what stands near it in training histories, in any order;
- ``next``: what comes right after it there;
- ``alike``: what shares rare words with it, such as a brand, which vectors of texts blur. An
  untrained graph of transitions and texts does as well as many trained models (GraphRec, arXiv
  2605.07125).

How much each kind counts is fitted on validation targets (`recgrit.retrieval.strengths`). Items
without interactions have no counts: they get those of the items they are alike.

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
# Neighbours of each kind that an item keeps.
NUM_NEIGHBOURS: dict[NeighbourKind, int] = {"near": 50, "next": 20, "alike": 100}
# Chosen on validation of Beauty and MovieLens-100K alike.
WINDOW = 20
SHRINKAGE = 10.0
# Items of a history that are asked for their neighbours, each this much less than the one after it.
MAX_ASKED = 10
DISCOUNT = 0.8
# Similarities are sums over few users: squares keep the many small ones from outweighing the large.
SHARPNESS = 2
# Fraction of all weight of a kind from which on its bonus counts.
COUNTED_FROM: dict[NeighbourKind, float] = {"near": 1e-5, "next": 1e-4}
# Items that stand for one without interactions, those most like it; and items without interactions
# that an item with counts has for neighbours at most.
NUM_MOST_ALIKE = 20
NUM_STAND_INS = 5


@dataclass(frozen=True)
class Strengths:
    """How much neighbours count beside a model.

    Args:
        mixture: Weight of the near ones' part in the probability of an item.
        near: Scale of a bonus in the score: an item with the fraction s of their weight scores
            ``near * log(1 + s / COUNTED_FROM["near"])`` more than its log probability. What both
            the model and the counts find likely then comes first, as in a product of experts
            (Hinton, Neural Computation 2002); a mixture asks for one of them.
        next: Likewise, of the share of those that come next.
        alike: Scale of a bonus by the mean cosine with the history's items.
    """

    mixture: float = 0.1
    near: float = 0.2
    next: float = 0.05
    alike: float = 8.0

    def only(self, kinds: Sequence[NeighbourKind]) -> Strengths:
        """Without what other kinds add."""
        none: dict[str, float] = {kind: 0.0 for kind in KINDS if kind not in kinds}
        return replace(self, **none if "near" in kinds else none | {"mixture": 0.0})


def find_similar(
    split: SequenceSplit, *, num_neighbours: int, window: int, shrinkage: float
) -> csr_array:
    """The largest similarities of each item (row) with others, float64 ``[N, N]``.

    The similarity is the cosine of how often two items stand near each other in training parts,
    shrunk towards 0 where it rests on little (Sarwar et al., WWW 2001).

    Args:
        split: The sequences.
        num_neighbours: Most similar items kept of each item.
        window: How many positions apart two items of a user may stand to count as a pair.
        shrinkage: Added to the norm: small counts are trusted less.
    """
    together = count_pairs(split, window)
    counts = split.train_item_counts()
    for item in range(split.num_items):
        entries = slice(together.indptr[item], together.indptr[item + 1])
        others = together.indices[entries]
        together.data[entries] /= np.sqrt(counts[item] * counts[others]) + shrinkage
    return keep_largest(together, num_neighbours)


def find_next(split: SequenceSplit) -> csr_array:
    """How often each item (column) comes right after another (row), shares float64 ``[N, N]``."""
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
    """Refuse a checkpoint that names items the catalogue does not have.

    Raises:
        ValueError: It does.
    """
    assert isinstance(neighbours, ItemNeighbours)
    for kind in neighbours.kinds:
        items = getattr(neighbours, f"{kind}_items")
        if items.numel() and not 0 <= int(items.min()) <= int(items.max()) < neighbours.num_items:
            raise ValueError(
                f"neighbours are items {int(items.min())} to {int(items.max())} of "
                f"{neighbours.num_items}"
            )


class ItemNeighbours(nn.Module):
    """Each item's neighbours, and what they add to scores after a history.

    Part of the retriever's weights, so that a trained retriever needs no sequences to recommend.

    Args:
        num_items: N; without neighbours until `count` or a checkpoint brings them.
        kinds: Of neighbours.
        strengths: How much they count, until a fit or a checkpoint says.
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
        """How much the neighbours count."""
        return Strengths(*self.fitted.tolist())

    @strengths.setter
    def strengths(self, strengths: Strengths) -> None:
        self.fitted.copy_(torch.tensor(astuple(strengths), dtype=torch.float64))

    def count(self, split: SequenceSplit, likeness: Likeness | None = None) -> None:
        """Count the neighbours in the training parts of these sequences.

        Args:
            split: The sequences.
            likeness: Of the items; None gives those without interactions no neighbours.
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
        """Give neighbours to items that joined after the counting.

        Args:
            likeness: Of all items.
            known: bool ``[N]``, the items that were there.
            added: bool ``[N]``, the items to give neighbours to; none that was there.
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
        """Give items without counts what the items most like them suggest.

        Such an item is as near to those most like it as an item's nearest typically is, times
        their cosine, and as near to any other as those are in the mean, weighted by cosines. It
        comes next where those come next. An item with counts gets no more than `NUM_STAND_INS` of
        them for neighbours, however many are like it: they stand beside what was counted and do not
        take its place.
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
        """Rows ``[n, N]`` of some items in a table of all, float64 ``[N, N]``."""
        from scipy.sparse import csr_array

        entries = rows.tocoo()
        places = (items[entries.coords[0]], entries.coords[1])
        shape = (self.num_items, self.num_items)
        return csr_array((entries.data.astype(np.float64), places), shape=shape)

    def _table(self, kind: NeighbourKind) -> csr_array:
        """The neighbours of a kind, float64 ``[N, N]``."""
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
        """Replace all neighbours of a kind by rows of at most as many entries as are kept."""
        items: Tensor = getattr(self, f"{kind}_items")
        values: Tensor = getattr(self, f"{kind}_values")
        rows = np.repeat(np.arange(self.num_items), np.diff(table.indptr))
        columns = np.arange(table.nnz) - table.indptr[rows]
        items.zero_()
        values.zero_()
        items[rows, columns] = torch.from_numpy(table.indices.astype(np.int32))
        values[rows, columns] = torch.from_numpy(table.data.astype(np.float32))

    def nearest_table(self) -> csr_array | None:
        """What is near each item; where that is not counted, what comes next or is alike.

        Sparse float64 ``[N, N]``; None if no kind is counted.
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
        """What the neighbours give to each leaf after each history.

        The parts of the probability of one history sum to the mixture weight, or to 0 where nothing
        is near its items. Items of the history itself get nothing: whether people come back for
        them is for the model to know.

        Args:
            histories: ``[B, T]``.
            leaf_of: ``[N]``, the leaf of each item.
            seen: The leaves of each history.
            fixed_shapes: As many entries whatever was found, so that no number is read back.
        """
        leaves, shares = self._share(histories, leaf_of, seen, fixed_shapes=fixed_shapes)
        mixture, *scales = self.fitted.unbind()  # Never read back from a GPU.
        bonuses = torch.zeros_like(leaves, dtype=torch.float64)
        for kind, scale in zip(KINDS, scales, strict=True):
            if kind in shares:
                bonuses += scale * bonus_of(kind, shares[kind])
        weights = mixture * shares.get("near", torch.zeros_like(bonuses))
        return LeafWeights(leaves, weights, bonuses.float())

    def _share(
        self, histories: Histories, leaf_of: Tensor, seen: LeafSets, *, fixed_shapes: bool = False
    ) -> tuple[Tensor, dict[NeighbourKind, Tensor]]:
        """How near, next and alike leaves are to histories, arguments as for `weigh`.

        Returns:
            Leaves int64 ``[B, E]``, ascending in each row; and by kind float64 ``[B, E]``, all that
            a leaf has at the first of its entries: what is near sums to 1, what comes next to 1 at
            most, and what is alike has a mean cosine.
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
        # The leaves of a row are numbered as they ascend: each gets one entry, the last all others.
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
        """How near, next and alike some items ``[B, K]`` are to histories; `NO_ITEM` is nothing.

        Returns:
            By kind float64 ``[B, K]``; and bool ``[B, 1]``, whether anything is near a history.
        """
        everything = torch.arange(self.num_items, device=items.device)
        seen = LeafSets.build(histories.items, histories.present, self.num_items)
        leaves, shares = self._share(histories, everything, seen)
        places = torch.searchsorted(leaves, items).clamp_max(leaves.shape[1] - 1)
        is_there = leaves.gather(1, places) == items
        found = {kind: share.gather(1, places) * is_there for kind, share in shares.items()}
        return found, shares.get("near", is_there).any(dim=-1, keepdim=True)


def bonus_of(kind: NeighbourKind, share: Tensor) -> Tensor:
    """What a share adds to a score, times the kind's strength."""
    unit = COUNTED_FROM.get(kind)
    return share if unit is None else torch.log1p(share / unit)
