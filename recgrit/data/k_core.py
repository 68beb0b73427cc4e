"""The k-core: the largest subset of the data in which no user or item is rare."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.data.partitions import Store

Counts = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).max


def cut_to_k_core(
    rows: Store,
    per_user: Counts,
    per_item: Counts,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
) -> None:
    """Find the k-core, and lower the counts of users and items to their counts within it.

    A user or item is rare if it has fewer interactions than its minimum. Dropping a rare item can
    make a user rare, and the reverse, so both are dropped in turns until nothing changes. The
    result does not depend on the order. Repeated interactions count.

    A partition is visited again if an item became rare after its last visit. The users of a
    partition are in no other partition. Which of its rows were left at the last visit is therefore
    known from the counts of its users and from the visit at which each item became rare.

    Args:
        rows: Store of rows with ``user_id`` and ``item_id``. The rows are not changed.
        per_user: int64 ``[num_users]``, number of interactions of each user. Lowered in place.
            Afterwards a user is in the k-core if this number is at least the minimum.
        per_item: int64 ``[num_items]``, number of interactions of each item. Lowered in place.
            Afterwards an item is in the k-core if this number is at least the minimum.
        min_user_interactions: Smallest number of interactions of a user in the k-core.
        min_item_interactions: Smallest number of interactions of an item in the k-core.
    """
    rare_since = np.full(len(per_item), NEVER)
    last_visits = np.full(rows.num_partitions, -1)
    visit = latest = 0
    while len(stale := np.flatnonzero(last_visits < latest)):
        for number in stale.tolist():
            first = number * rows.users_per_partition
            own = per_user[first : first + rows.users_per_partition]
            pairs = rows.read(number, ["user_id", "item_id"])
            users, items = pairs["user_id"].to_numpy() - first, pairs["item_id"].to_numpy()
            left = np.ones(len(users), np.bool_)
            if last_visits[number] >= 0:
                left = (own >= min_user_interactions)[users]
                left &= (rare_since > last_visits[number])[items]
            while True:
                before = left
                left = (own >= min_user_interactions)[users]
                left &= (per_item >= min_item_interactions)[items]
                dropped = np.flatnonzero(before != left)
                if not len(dropped):
                    break
                own -= np.bincount(users[dropped], minlength=len(own))
                per_item -= np.bincount(items[dropped], minlength=len(per_item))
            became_rare = (per_item < min_item_interactions) & (rare_since == NEVER)
            if became_rare.any():
                rare_since[became_rare] = latest = visit
            last_visits[number] = visit
            visit += 1
