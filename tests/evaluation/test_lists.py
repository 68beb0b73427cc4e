"""Compare reach, novelty and evenness of lists with RecTools and with their definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.data.recommendations import NO_ITEM
from recgrit.evaluation.lists import (
    average_popularity,
    catalogue_coverage,
    gini_index,
    intra_list_diversity,
    mean_self_information,
)
from recgrit.evaluation.metrics import popularity_ranks, ranks_of_targets, serendipity_at_k

NUM_USERS, NUM_ITEMS, LENGTH = 30, 25, 5
# Results of RecTools 0.19.0 for `draw_case`. The coverage is that of its first six lists.
RECTOOLS = {
    "novelty": 2.214074036942209,
    "popularity": 9.08,
    "coverage": 0.76,
    "serendipity": 0.04685714285714287,
}


def draw_case() -> tuple[np.ndarray, np.ndarray]:
    """Draw lists, int32 [U, K], and training interactions, bool [U, N].

    U is the number of users, K the list length and N the number of items. Some lists are short.
    Popularity is uneven, and some items have no interactions.
    """
    generator = np.random.default_rng(7)
    taken = generator.random((NUM_USERS, NUM_ITEMS)) < np.linspace(0.6, 0.0, NUM_ITEMS)
    lists = np.stack([generator.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    lists = lists.astype(np.int32)
    lists[3, 2:] = lists[8, 1:] = NO_ITEM
    return lists, taken


def draw_targets(lists: np.ndarray) -> np.ndarray:
    """Draw each user's next item, int32 [U]. It is in the lists of most users."""
    generator = np.random.default_rng(8)
    listed = lists[np.arange(NUM_USERS), generator.integers(0, LENGTH, NUM_USERS)]
    return np.where(listed != NO_ITEM, listed, 0).astype(np.int32)


def test_agreement_with_what_rectools_gave() -> None:
    """The results equal recorded ones of RecTools, so this test does not need RecTools."""
    lists, taken = draw_case()
    takers, users = taken.sum(axis=0), int(taken.any(axis=1).sum())
    assert mean_self_information(lists, takers, users).mean() == pytest.approx(RECTOOLS["novelty"])
    assert average_popularity(lists, takers).mean() == pytest.approx(RECTOOLS["popularity"])
    assert catalogue_coverage(lists[:6], NUM_ITEMS) == pytest.approx(RECTOOLS["coverage"])
    full = lists[(lists != NO_ITEM).all(axis=1)]
    targets = draw_targets(lists)[(lists != NO_ITEM).all(axis=1)]
    found = serendipity_at_k(
        ranks_of_targets(full, targets), popularity_ranks(takers)[targets], LENGTH, NUM_ITEMS
    )
    assert found.mean() == pytest.approx(RECTOOLS["serendipity"])


def test_agreement_with_rectools() -> None:
    metrics = pytest.importorskip("rectools.metrics", reason="RecTools is not installed")
    lists, taken = draw_case()
    rows, places = np.nonzero(lists != NO_ITEM)
    listed = pd.DataFrame({"user_id": rows, "item_id": lists[rows, places], "rank": places + 1})
    users, items = np.nonzero(taken)
    before = pd.DataFrame({"user_id": users, "item_id": items})
    first = listed[listed["user_id"] < 6]
    # RecTools divides by the length of each list, so short lists are left out.
    full = listed[listed.groupby("user_id")["item_id"].transform("size") == LENGTH]
    targets = pd.DataFrame({"user_id": range(NUM_USERS), "item_id": draw_targets(lists)})
    found = {
        "serendipity": metrics.Serendipity(k=LENGTH).calc(full, targets, before, range(NUM_ITEMS)),
        "novelty": metrics.MeanInvUserFreq(k=LENGTH).calc(listed, before),
        "popularity": metrics.AvgRecPopularity(k=LENGTH).calc(listed, before),
        "coverage": metrics.CatalogCoverage(k=LENGTH, normalize=True).calc(first, range(NUM_ITEMS)),
    }
    assert found == pytest.approx(RECTOOLS)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=40))
def test_gini_is_half_the_mean_difference_over_the_mean(listed: list[int]) -> None:
    lists = np.array(listed, dtype=np.int32)[:, None]
    times = np.bincount(listed, minlength=12)
    differences = np.abs(times[:, None] - times).mean()
    assert gini_index(lists, 12) == pytest.approx(differences / 2 / times.mean())


def test_gini_does_not_see_padding_or_the_order_of_items() -> None:
    lists = np.array([[0, 1, 2], [0, 1, NO_ITEM], [0, NO_ITEM, NO_ITEM]], dtype=np.int32)
    other = np.array([[3, 2, 1], [3, 2, NO_ITEM], [3, NO_ITEM, NO_ITEM]], dtype=np.int32)
    assert gini_index(lists, 4) == gini_index(other, 4) == pytest.approx(10 / 24)
    assert np.isnan(gini_index(np.full((2, 3), NO_ITEM, dtype=np.int32), 4))


@given(seed=st.integers(0, 10_000), zero=st.booleans())
def test_diversity_is_the_mean_distance_of_all_pairs(seed: int, zero: bool) -> None:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(6, 3)).astype(np.float32)
    if zero:
        features[:2] = 0
    items = generator.permutation(6)[: generator.integers(2, 6)].astype(np.int32)
    row = np.concatenate([items, np.full(6 - len(items), NO_ITEM, np.int32)])
    lengths = np.linalg.norm(features, axis=1)
    distances = [
        1 - float(features[a] @ features[b]) / float(lengths[a] * lengths[b] or 1)
        for place, a in enumerate(items)
        for b in items[place + 1 :]
    ]
    found = intra_list_diversity(row[None], features)
    assert found[0] == pytest.approx(np.mean(distances), abs=1e-5)
