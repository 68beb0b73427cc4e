"""Fitting of the neighbour strengths on validation targets.

Shapes: B users, K candidates.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recgrit import distributed
from recgrit.data.splits import SequenceSplit
from recgrit.progress import track
from recgrit.ranking import Ranker, last_items
from recgrit.retrieval.config import NeighbourKind
from recgrit.retrieval.neighbours import ItemNeighbours, Strengths, bonus_of
from recgrit.training.validation import VALID_K, choose_valid_users

logger = logging.getLogger(__name__)

# Maximum number of validation users to fit on, and number of items to rank again for each.
FIT_USERS = 4000
FIT_CANDIDATES = 200
# Values of each strength that are tried.
LADDERS: dict[str, tuple[float, ...]] = {
    "mixture": (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    "near": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    "next": (0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
    "alike": (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
}


def fit_strengths(
    neighbours: ItemNeighbours, ranker: Ranker, split: SequenceSplit, *, seed: int
) -> None:
    """Set the neighbour strengths that rank the validation targets best.

    The model's best items after each validation history are ranked again by all combinations of
    `LADDERS`. The combination with the highest NDCG@10 is kept. Each of several processes reads a
    share of the users, and all set the same strengths.

    Args:
        neighbours: Neighbours of the ranker's model, whose strengths are set.
        ranker: Ranker that finds `FIT_CANDIDATES` items per user with the current strengths.
        split: Sequences whose validation targets are ranked.
        seed: Seed of the draw of `FIT_USERS` users, if there are more.
    """
    users = choose_valid_users(split, FIT_USERS, seed)
    mine = users[distributed.share(len(users))]
    present = [kind for kind in neighbours.kinds if getattr(neighbours, f"{kind}_values").any()]
    names = [*present, *(["mixture"] if "near" in present else [])]
    choices = [
        replace(neighbours.strengths.only(present), **dict(zip(names, values, strict=True)))
        for values in itertools.product(*(LADDERS[name] for name in names))
    ]
    sums = np.zeros(len(choices))
    starts = range(0, len(mine), ranker.batch_users)
    for start in track(starts, "fit neighbours", len(starts)):
        some = mine[start : start + ranker.batch_users]
        sums += _find_candidates(neighbours, ranker, split, some).sum_ndcg(choices)
    totals = distributed.sum_numbers(*sums)
    best = choices[int(np.argmax(totals))]
    neighbours.strengths = best
    if distributed.is_first():
        values = ", ".join(f"{name} {value:g}" for name, value in asdict(best).items())
        logger.info("neighbour strengths fitted on validation: %s", values)


@dataclass(frozen=True)
class _Candidates:
    """Candidate items of the users whose target is among their candidates.

    Shapes: B users, K candidates per user.

    Args:
        probabilities: The model's probability of each candidate, float64 ``[B, K]``.
        shares: Neighbour share of each candidate by kind, float64 ``[B, K]``.
        near_anything: Whether any item is ``near`` the user's history, bool ``[B, 1]``.
        is_target: Whether a candidate is the target, bool ``[B, K]``. Each row has one target.
    """

    probabilities: Tensor
    shares: dict[NeighbourKind, Tensor]
    near_anything: Tensor
    is_target: Tensor

    def sum_ndcg(self, choices: Sequence[Strengths]) -> list[float]:
        """Return the NDCG@10 with each of the given strengths, summed over the users."""
        units = {kind: bonus_of(kind, share) for kind, share in self.shares.items()}
        near = self.shares.get("near", torch.zeros_like(self.probabilities))
        log_mixed, found = {}, []
        for strengths in choices:
            if strengths.mixture not in log_mixed:
                part = strengths.mixture * self.near_anything
                mixed = (1 - part) * self.probabilities + part * near
                least = torch.finfo(mixed.dtype).tiny
                log_mixed[strengths.mixture] = mixed.clamp_min(least).log()
            scores = log_mixed[strengths.mixture]
            for kind, unit in units.items():
                scores = scores + getattr(strengths, kind) * unit
            ranks = (scores > scores[self.is_target].unsqueeze(-1)).sum(dim=-1)
            found.append(float(((ranks < VALID_K) / (ranks + 2.0).log2()).sum()))
        return found


def _find_candidates(
    neighbours: ItemNeighbours,
    ranker: Ranker,
    split: SequenceSplit,
    users: npt.NDArray[np.int64],
) -> _Candidates:
    """Return the best items of users by the current strengths, and the parts of their scores."""
    starts, ends = split.offsets[:-1][users], split.target_positions("valid")[users]
    people = split.people_of(users)
    histories = last_items(split.items, starts, ends, ranker.history_length, people)
    histories = histories.to(ranker.device)
    ranked = ranker.rank(histories, top_k=FIT_CANDIDATES, excluded=None)
    items = ranked.items.long()
    targets = torch.from_numpy(split.targets("valid", users)).to(items.device)
    is_target = items == targets.unsqueeze(-1)
    shares, near_anything = neighbours.share_of_items(histories, items)
    # The model's own probability is the score without the bonuses and the mixture.
    strengths = neighbours.strengths
    log_mixed = ranked.scores.double()
    for kind, share in shares.items():
        log_mixed = log_mixed - getattr(strengths, kind) * bonus_of(kind, share)
    part = strengths.mixture * near_anything
    near = shares.get("near", torch.zeros_like(log_mixed))
    probabilities = ((log_mixed.exp() - part * near) / (1 - part)).clamp_min(0)
    is_found = is_target.any(dim=-1)
    return _Candidates(
        probabilities[is_found],
        {kind: share[is_found] for kind, share in shares.items()},
        near_anything[is_found],
        is_target[is_found],
    )
