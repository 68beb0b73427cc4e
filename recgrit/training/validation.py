"""Validation after each training epoch: Recall@10 and NDCG@10 on validation targets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit import distributed
from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.ranking import Ranker, recommend_items

# List length at which Recall and NDCG are computed in the validation after each epoch.
VALID_K = 10


def choose_valid_users(split: SequenceSplit, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Return the users on whom the training is validated, int64, in ascending order.

    Args:
        split: Sequences of the users.
        limit: Number of users to draw at random. None returns all users with a validation target.
        seed: Seed of the random draw.
    """
    users = split.target_users("valid")
    if limit is None or limit >= len(users):
        return users
    return np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))


def validate(
    ranker: Ranker, split: SequenceSplit, users: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Compute mean Recall@10 and NDCG@10 on the validation targets, with seen items allowed.

    With several processes, each ranks for its part of the users, and all return the means over all
    users.

    Args:
        ranker: The model that is validated.
        split: Sequences of the users.
        users: Users by ``user_idx``, each with a validation target.

    Returns:
        The mean Recall@10 and the mean NDCG@10.
    """
    mine = users[distributed.share(len(users))]
    found = recommend_items(ranker, split, "valid", mine, top_k=VALID_K, masked=False)
    ranks = ranks_of_targets(found.items, split.targets("valid", mine))
    recall, ndcg = distributed.sum_numbers(
        recall_at_k(ranks, VALID_K).sum(), ndcg_at_k(ranks, VALID_K).sum()
    )
    return recall / len(users), ndcg / len(users)
