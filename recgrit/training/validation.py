"""Validation while training: Recall and NDCG at 10 on some or all validation targets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit import distributed
from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.ranking import Ranker, recommend_items

# Validation is read at this cut-off while training.
VALID_K = 10


def choose_valid_users(split: SequenceSplit, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    """The users with a validation target, or a sample of ``limit`` of them."""
    users = split.target_users("valid")
    if limit is None or limit >= len(users):
        return users
    return np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))


def validate(
    ranker: Ranker, split: SequenceSplit, users: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Recall and NDCG at `VALID_K` on the validation targets of these users, unmasked.

    Each of several processes reads some of the users; all return the means over all of them.
    """
    mine = users[distributed.share(len(users))]
    found = recommend_items(ranker, split, "valid", mine, top_k=VALID_K, masked=False)
    ranks = ranks_of_targets(found.items, split.targets("valid", mine))
    recall, ndcg = distributed.sum_numbers(
        recall_at_k(ranks, VALID_K).sum(), ndcg_at_k(ranks, VALID_K).sum()
    )
    return recall / len(users), ndcg / len(users)
