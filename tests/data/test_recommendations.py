from __future__ import annotations

import numpy as np
import pytest

from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.errors import DataError


def build(items: list[list[int]], num_users: int | None = None) -> Recommendations:
    array = np.array(items, dtype=np.int32)
    users = np.arange(len(items) if num_users is None else num_users, dtype=np.int64)
    return Recommendations(users, array, np.zeros(array.shape, dtype=np.float32))


def test_short_lists_are_not_filled_up_in_the_table() -> None:
    recommendations = build([[3, 1], [2, NO_ITEM], [NO_ITEM, NO_ITEM]])
    assert (recommendations.num_users, recommendations.top_k) == (3, 2)
    assert recommendations.to_polars().select("user_idx", "rank", "item_idx").rows() == [
        (0, 1, 3),
        (0, 2, 1),
        (1, 1, 2),
    ]
    assert len(recommendations.to_pandas()) == 3


def test_invalid_lists_of_recommendations_are_refused() -> None:
    with pytest.raises(DataError, match="one shape"):
        build([[1, 2]], num_users=2)
    with pytest.raises(DataError, match="empty place"):
        build([[NO_ITEM, 2]])
    with pytest.raises(DataError, match="twice"):
        build([[2, 1, 2]])
    for score in (np.inf, np.nan):
        with pytest.raises(DataError, match="not finite"):
            Recommendations(
                np.array([0]), np.array([[1]], np.int32), np.array([[score]], np.float32)
            )
