"""The k-core: the largest part of the data in which no user and no item is rare."""

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
    """Lower the counts to those of the rows that are left once no user and no item is rare.

    Dropping a rare item can make a user too short and the reverse, so both are dropped in turns
    until nothing changes; the result does not depend on which comes first. Repeats count.

    A partition is visited again where an item has become rare since. Its users are in no other
    partition, so what it had left by then follows from its users and when items became rare.

    Args:
        rows: With ``user_id`` and ``item_id``; none is changed.
        per_user: int64 [num_users], the interactions of each user; lowered in place.
        per_item: int64 [num_items], the interactions of each item; lowered in place. Whoever is
            left has at least the minimum then, all others less.
        min_user_interactions: Users with fewer are dropped.
        min_item_interactions: Items with fewer are dropped.
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
