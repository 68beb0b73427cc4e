"""Recommendations for users of a split: batches of histories in, lists out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import DataError
from recgrit.progress import track
from recgrit.retrieval.batching import last_items
from recgrit.retrieval.ranking import Ranker

# Users whose lists are held at once when a whole user base is served.
SHARD_USERS = 65_536

History = Split | Literal["all"]


@torch.inference_mode()
def recommend_items(
    ranker: Ranker,
    split: SequenceSplit,
    history: History,
    users: npt.NDArray[np.int64],
    *,
    top_k: int,
    masked: bool,
) -> Recommendations:
    """The best items of these users.

    Args:
        ranker: A trained model.
        split: Whose sequences to read.
        history: "valid" and "test" read what comes before that target, "all" everything.
        users: user_idx of each list.
        top_k: Longest list.
        masked: Keep out the items of the whole history, also of what is too old to be read.

    Raises:
        DataError: A user has no history to start from.
    """
    ends = split.offsets[1:] if history == "all" else split.target_positions(history)
    starts, ends = np.asarray(split.offsets[:-1][users]), np.asarray(ends[users])
    if np.any(ends <= starts):
        raise DataError(f"{np.sum(ends <= starts)} users have no history to recommend from.")
    items = np.full((len(users), top_k), NO_ITEM, dtype=np.int32)
    scores = np.full((len(users), top_k), -np.inf, dtype=np.float32)
    # Users with histories of like length together: little padding.
    order = np.argsort(ends - starts, kind="stable")
    size = ranker.batch_users
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    for rows in track(batches, f"recommend {history}", len(batches)):
        read = last_items(split.items, starts[rows], ends[rows], ranker.history_length)
        excluded = None
        if masked:
            longest = int((ends - starts)[rows].max())
            excluded = last_items(split.items, starts[rows], ends[rows], longest).to(ranker.device)
        ranked = ranker.rank(read.to(ranker.device), top_k=top_k, excluded=excluded)
        found = ranked.items.shape[1]
        items[rows, :found] = ranked.items.cpu().numpy()
        scores[rows, :found] = ranked.scores.cpu().numpy()
    return Recommendations(users=users, items=items, scores=scores)


def recommend_shards(
    ranker: Ranker,
    split: SequenceSplit,
    users: npt.NDArray[np.int64],
    *,
    top_k: int,
    masked: bool,
    shard_users: int = SHARD_USERS,
) -> Iterator[Recommendations]:
    """`recommend_items` after all that these users took, some users at a time.

    Memory does not grow with their number.
    """
    for start in range(0, len(users), shard_users):
        yield recommend_items(
            ranker, split, "all", users[start : start + shard_users], top_k=top_k, masked=masked
        )
