import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import DataError
from recgrit.evaluation.metrics import (
    METRICS,
    ndcg_at_k,
    ranks_of_targets,
    recall_at_k,
    reciprocal_rank_at_k,
)


@st.composite
def lists_and_targets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draw lists without duplicates, some padded, and targets that may be missing from them."""
    num_items, length = draw(st.integers(2, 30)), draw(st.integers(1, 12))
    rows = draw(
        st.lists(
            st.lists(st.integers(0, num_items - 1), max_size=length, unique=True),
            min_size=1,
            max_size=8,
        )
    )
    items = np.full((len(rows), length), NO_ITEM, dtype=np.int32)
    for row, values in enumerate(rows):
        items[row, : len(values)] = values
    targets = draw(st.lists(st.integers(0, num_items - 1), min_size=len(rows), max_size=len(rows)))
    return items, np.array(targets, dtype=np.int32)


@given(lists_and_targets())
def test_ranks_agree_with_a_search_in_each_list(case: tuple[np.ndarray, np.ndarray]) -> None:
    items, targets = case
    expected = [
        row.index(target) + 1 if target in row else 0
        for row, target in zip(items.tolist(), targets.tolist(), strict=True)
    ]
    ranks = ranks_of_targets(items, targets)
    assert ranks.dtype == np.int32
    assert ranks.tolist() == expected


def test_padding_is_never_a_hit() -> None:
    items = np.array([[4, NO_ITEM]], dtype=np.int32)
    assert ranks_of_targets(items, np.array([NO_ITEM], dtype=np.int32)).tolist() == [0]


def test_shapes_that_disagree_are_refused() -> None:
    items = np.zeros((2, 3), dtype=np.int32)
    with pytest.raises(DataError, match=r"\(2, 3\) and \(3,\)"):
        ranks_of_targets(items, np.zeros(3, dtype=np.int32))


def test_ndcg_of_each_rank() -> None:
    ranks = np.array([1, 2, 3, 10, 11, 0], dtype=np.int32)
    assert_allclose(ndcg_at_k(ranks, 10), [1.0, 0.6309, 0.5, 0.2891, 0.0, 0.0], atol=5e-5)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_hits_end_at_k(k: int) -> None:
    ranks = np.array([k, k + 1], dtype=np.int32)
    assert_array_equal(recall_at_k(ranks, k), [1.0, 0.0])
    assert_array_equal(ndcg_at_k(ranks, k) > 0, [True, False])


@pytest.mark.parametrize("metric", METRICS.values())
@given(
    ranks=st.lists(st.integers(0, 30), min_size=1).map(lambda r: np.array(r, dtype=np.int32)),
    k=st.integers(1, 20),
)
def test_metrics_stay_in_range_and_grow_with_k(metric, ranks, k) -> None:  # type: ignore[no-untyped-def]
    values = metric(ranks, k)
    assert values.shape == ranks.shape
    assert np.all((values >= 0) & (values <= 1))
    assert np.all(metric(ranks, k + 1) >= values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unsafe cast")
def test_agreement_with_ranx() -> None:
    # ranx compiles its metrics at the first call, which takes half a minute, so it is called once.
    from ranx import Qrels, Run, evaluate

    cases: list[tuple[np.ndarray, np.ndarray]] = []

    @settings(max_examples=40, database=None, derandomize=True)
    @given(lists_and_targets())
    def collect(case: tuple[np.ndarray, np.ndarray]) -> None:
        cases.append(case)

    collect()
    rows = [(row, t) for items, targets in cases for row, t in zip(items, targets, strict=True)]
    qrels, run, ours = {}, {}, []
    for number, (row, target) in enumerate(rows):
        filled = row[row != NO_ITEM]
        if not len(filled):
            continue  # ranx does not accept an empty list.
        user = f"u{number:05d}"
        qrels[user] = {str(target): 1}
        run[user] = {str(item): float(len(row) - i) for i, item in enumerate(filled)}
        ours.append(int(ranks_of_targets(row[None], np.array([target], np.int32))[0]))
    ranks = np.array(ours, dtype=np.int32)
    assert np.any(ranks == 0)
    assert np.any(ranks > 2)
    theirs = evaluate(Qrels(qrels), Run(run), ["recall@5", "ndcg@5", "ndcg@10", "mrr@5"])
    assert_allclose(recall_at_k(ranks, 5).mean(), theirs["recall@5"])
    assert_allclose(ndcg_at_k(ranks, 5).mean(), theirs["ndcg@5"])
    assert_allclose(ndcg_at_k(ranks, 10).mean(), theirs["ndcg@10"])
    assert_allclose(reciprocal_rank_at_k(ranks, 5).mean(), theirs["mrr@5"])
