import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recgrit import ranking
from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import DataError
from recgrit.ranking import recommend_shards
from recgrit.retrieval import trie_ranker
from recgrit.retrieval.decoding import score_all_items
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.retrieval.trie_walk import TrieWalk

NUM_ITEMS, NUM_USERS, HISTORY_LENGTH = 40, 25, 8


@pytest.fixture(scope="module")
def model(make_model, random_codes):
    return make_model(random_codes(NUM_ITEMS), history_length=HISTORY_LENGTH)


@pytest.fixture(scope="module")
def split(make_split):
    """Build histories with repeats, some shorter and some longer than the model reads."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, NUM_USERS)
    return make_split([rng.integers(0, NUM_ITEMS, length) for length in lengths], NUM_ITEMS)


def recommend_items(
    model, split, history, users, *, top_k, beam_width, masked, precision=torch.float32
):
    ranker = TrieRanker(model, beam_width=beam_width, precision=precision)
    return ranking.recommend_items(ranker, split, history, users, top_k=top_k, masked=masked)


def everyone(split):
    return np.arange(split.num_users)


def history_of(split, user, name):
    return split.full_sequence(user) if name == "all" else split.history(user, name)


@pytest.mark.parametrize("name", ["valid", "test", "all"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beam_width", [None, NUM_ITEMS])
def test_lists_are_the_best_items_user_by_user(model, split, name, masked, beam_width):
    found = recommend_items(
        model, split, name, everyone(split), top_k=5, beam_width=beam_width, masked=masked
    )
    vectors = model.nodes()
    for user in range(NUM_USERS):
        history = history_of(split, user, name)
        read = torch.tensor(history[-HISTORY_LENGTH:], dtype=torch.long)
        state = model.encode(read[None], vectors)[:, -1]
        seen = model.find_seen(read[None], torch.ones_like(read[None], dtype=torch.bool))
        scores = score_all_items(model.trie, TrieWalk(model, vectors, state, seen))[0].clone()
        # A filter removes the whole history, including items before those that the model reads.
        if masked:
            scores[torch.tensor(history, dtype=torch.long)] = float("-inf")
        best = scores.topk(5)
        np.testing.assert_allclose(found.scores[user], best.values.numpy(), atol=1e-4)
        assert found.items[user].tolist() == best.indices.tolist()


@pytest.mark.parametrize("beam_width", [None, 5])
def test_masked_items_are_never_listed_and_unmasked_ones_may_be(model, split, beam_width):
    lists = {
        masked: recommend_items(
            model, split, "test", everyone(split), top_k=5, beam_width=beam_width, masked=masked
        )
        for masked in (False, True)
    }
    repeats = {
        masked: sum(
            len(set(found.items[user].tolist()) & set(split.history(user, "test").tolist()))
            for user in range(NUM_USERS)
        )
        for masked, found in lists.items()
    }
    assert repeats[True] == 0
    assert repeats[False] > 0
    assert (lists[True].items != NO_ITEM).all()


@pytest.mark.parametrize("beam_width", [None, 60])
def test_lists_end_where_the_items_end(model, make_split, beam_width):
    # The first user has interacted with all items but 3, 8 and 11, and with some of them twice.
    first = [item for item in range(NUM_ITEMS) if item not in (3, 8, 11)]
    split = make_split([[*first, *first[:9]], [1, 2, 3]], NUM_ITEMS)
    found = recommend_items(
        model, split, "all", everyone(split), top_k=50, beam_width=beam_width, masked=True
    )
    assert sorted(found.items[0, :3].tolist()) == [3, 8, 11]
    assert (found.items[0, 3:] == NO_ITEM).all()
    assert (found.scores[0, 3:] == -np.inf).all()
    assert (found.items[1] != NO_ITEM).sum() == NUM_ITEMS - 3


def test_a_long_list_is_searched_with_two_prefixes_for_each_item(model, split):
    """A beam as narrow as one prefix per item would miss items of a long list."""
    narrow, wide, exact = (
        recommend_items(
            model, split, "test", everyone(split), top_k=15, beam_width=beam_width, masked=False
        ).items
        for beam_width in (5, 30, None)
    )
    assert np.array_equal(narrow, wide)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(narrow, exact, strict=True)]
    assert np.mean(shared) > 14.8


@pytest.mark.parametrize("name", ["valid", "test"])
def test_the_target_and_later_items_change_no_list(model, split, name):
    """A history ends before its target, so changes of the target and later items have no effect."""
    items = split.items.copy()
    after = split.test_targets if name == "test" else split.valid_targets
    for user in range(NUM_USERS):
        later = slice(after[user], split.offsets[user + 1])
        items[later] = (items[later] + 1) % NUM_ITEMS
    changed = dataclasses.replace(split, items=items)
    assert (changed.items != split.items).sum() >= NUM_USERS
    lists = [
        recommend_items(model, s, name, everyone(s), top_k=10, beam_width=20, masked=True)
        for s in (split, changed)
    ]
    assert np.array_equal(lists[0].items, lists[1].items)
    assert np.array_equal(lists[0].scores, lists[1].scores)


def test_the_test_history_has_the_valid_item(model, split):
    items = split.items.copy()
    items[split.valid_targets] = (items[split.valid_targets] + 1) % NUM_ITEMS
    changed = dataclasses.replace(split, items=items)
    lists = [
        recommend_items(model, s, "test", everyone(s), top_k=10, beam_width=20, masked=False)
        for s in (split, changed)
    ]
    assert (lists[0].scores != lists[1].scores).any(axis=1).all()


def test_rows_are_the_requested_users_in_their_order(model, split, monkeypatch):
    def ask(users):
        return recommend_items(
            model, split, "test", np.array(users), top_k=5, beam_width=10, masked=True
        )

    full = ask(range(NUM_USERS))
    monkeypatch.setattr(trie_ranker, "BATCH_USERS", 4)
    order = [7, 3, 3, 20, 0, 11]
    found = ask(order)
    assert found.users.tolist() == order
    assert np.array_equal(found.items, full.items[order])
    np.testing.assert_allclose(found.scores, full.scores[order], atol=1e-4)


def test_dropout_is_off_even_if_the_model_was_training(make_model, random_codes, split):
    model = make_model(random_codes(NUM_ITEMS), dropout=0.5, node_dropout=0.5)
    lists = []
    for _ in range(2):
        model.train()
        lists.append(
            recommend_items(
                model, split, "test", everyone(split), top_k=5, beam_width=10, masked=True
            )
        )
    assert np.array_equal(lists[0].scores, lists[1].scores)


def test_half_precision_moves_scores_a_little(model, split):
    lists = [
        recommend_items(
            model,
            split,
            "test",
            everyone(split),
            top_k=5,
            beam_width=None,
            masked=True,
            precision=precision,
        )
        for precision in (torch.float32, torch.bfloat16)
    ]
    difference = np.abs(lists[0].scores - lists[1].scores)
    assert 0 < difference.max() < 0.3


def test_no_users_give_no_lists(model, split):
    none = np.array([], dtype=np.int64)
    found = recommend_items(model, split, "test", none, top_k=5, beam_width=10, masked=True)
    assert found.items.shape == (0, 5)


def test_a_user_without_history_is_refused(model, make_split):
    split = make_split([[1, 2, 3, 4], [5, 6]], NUM_ITEMS)
    users = everyone(split)
    with pytest.raises(DataError, match="1 users have no history"):
        recommend_items(model, split, "test", users, top_k=5, beam_width=10, masked=True)
    # Whole sequences are never empty, so both users get lists.
    found = recommend_items(model, split, "all", users, top_k=5, beam_width=10, masked=True)
    assert found.num_users == 2


def test_shards_put_together_are_the_whole(model, split):
    ranker = TrieRanker(model, beam_width=10)
    users = np.array([4, 9, 2, 2, 17])
    whole = ranking.recommend_items(ranker, split, "all", users, top_k=5, masked=True)
    shards = list(recommend_shards(ranker, split, users, top_k=5, masked=True, shard_users=2))
    assert [shard.num_users for shard in shards] == [2, 2, 1]
    assert np.array_equal(np.concatenate([shard.items for shard in shards]), whole.items)
    assert np.concatenate([shard.users for shard in shards]).tolist() == users.tolist()


@pytest.mark.parametrize("beam_width", [None, 5])
def test_filtered_lists_are_full_as_long_as_items_are_left(model, split, beam_width):
    allowed = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    allowed[[3, 5, 8, 21, 30, 31, 32]] = True
    ranker = TrieRanker(model, beam_width=beam_width, allowed=allowed)
    found = ranking.recommend_items(ranker, split, "all", everyone(split), top_k=5, masked=True)
    for user in range(NUM_USERS):
        left = set(allowed.nonzero().flatten().tolist()) - set(split.full_sequence(user).tolist())
        listed = [item for item in found.items[user].tolist() if item != NO_ITEM]
        assert set(listed) <= left
        assert len(listed) == min(5, len(left))


def test_nothing_allowed_is_refused(model):
    with pytest.raises(DataError, match="all are filtered out"):
        TrieRanker(model, beam_width=5, allowed=torch.zeros(NUM_ITEMS, dtype=torch.bool))


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=1, max_size=6))
def test_items_once_are_the_different_items_of_each_slice(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    flat = np.array([item for row in rows for item in row], np.int32)
    found = ranking.items_once(flat, offsets[:-1], offsets[1:], 10)
    assert found.items.shape[1] <= 10
    for row, items, length in zip(rows, found.items, found.lengths, strict=True):
        assert items[:length].tolist() == sorted(set(row))


def test_one_long_history_does_not_make_all_rows_long(model, make_split, monkeypatch):
    """Rows are padded to the longest history of their batch, but not beyond the catalogue size."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, NUM_ITEMS, 3 + user % 5) for user in range(300)]
    split = make_split([rng.integers(0, NUM_ITEMS, 1_000_000), *rows], NUM_ITEMS)
    asked = []
    rank = TrieRanker.rank

    def watch(self, histories, *, top_k, excluded):
        asked.append((histories.items.shape, excluded.items.shape))
        return rank(self, histories, top_k=top_k, excluded=excluded)

    monkeypatch.setattr(TrieRanker, "rank", watch)
    found = recommend_items(
        model, split, "all", everyone(split), top_k=3, beam_width=5, masked=True
    )
    assert sum(read[0] for read, _ in asked) == 301
    assert max(read[1] for read, _ in asked) <= HISTORY_LENGTH
    assert [excluded[1] > 10 for _, excluded in asked].count(True) == 1, "the long one alone"
    assert max(excluded[1] for _, excluded in asked) <= NUM_ITEMS
    assert (found.items[0] == NO_ITEM).all(), "the long one has every item"
    assert (found.items[1:] != NO_ITEM).all()


def test_long_lists_are_made_for_few_users_at_once(model, split, monkeypatch):
    monkeypatch.setattr(ranking, "MAX_LISTED", 30)
    sizes = []
    rank = TrieRanker.rank

    def watch(self, histories, **options):
        sizes.append(len(histories.items))
        return rank(self, histories, **options)

    monkeypatch.setattr(TrieRanker, "rank", watch)
    for top_k, most in ((3, 10), (30, 1), (40, 1)):
        sizes.clear()
        found = recommend_items(
            model, split, "test", everyone(split), top_k=top_k, beam_width=5, masked=False
        )
        assert max(sizes) == most
        assert found.items.shape == (NUM_USERS, top_k)
