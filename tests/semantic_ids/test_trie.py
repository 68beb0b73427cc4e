import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.semantic_ids.trie import build_trie


@st.composite
def ids(draw):
    """Draw unique IDs in any order."""
    num_levels = draw(st.integers(1, 4))
    code = st.tuples(*[st.integers(0, 3)] * num_levels)
    return draw(st.lists(code, unique=True, min_size=1, max_size=30))


def as_dict(rows):
    """Build the trie in plain Python: the sorted next codes of each prefix."""
    following = {}
    for row in rows:
        for level, code in enumerate(row):
            following.setdefault(row[:level], set()).add(code)
    return {prefix: sorted(codes) for prefix, codes in following.items()}


def prefixes_of_nodes(trie):
    """Return the prefix of each node, found by a walk from the root."""
    prefixes = {0: ()}
    for node in range(trie.num_nodes):
        for child in children_of(trie, node):
            prefixes[child] = (*prefixes[node], int(trie.node_codes[child]))
    return prefixes


def children_of(trie, node):
    return list(range(trie.child_starts[node], trie.child_starts[node + 1]))


@settings(max_examples=150, deadline=None)
@given(ids())
def test_is_the_trie_of_plain_python(rows):
    trie = build_trie(np.array(rows, dtype=np.int32))
    following = as_dict(rows)
    prefixes = prefixes_of_nodes(trie)
    assert sorted(prefixes) == list(range(trie.num_nodes))
    assert set(prefixes.values()) == set(following) | set(rows)
    assert len(set(prefixes.values())) == trie.num_nodes
    for node, prefix in prefixes.items():
        codes = [int(trie.node_codes[child]) for child in children_of(trie, node)]
        assert codes == following.get(prefix, [])


@settings(max_examples=150, deadline=None)
@given(ids())
def test_levels_leaves_and_paths(rows):
    trie = build_trie(np.array(rows, dtype=np.int32))
    prefixes = prefixes_of_nodes(trie)
    assert (trie.num_items, trie.num_levels) == (len(rows), len(rows[0]))
    for level in range(trie.num_levels + 1):
        nodes = range(trie.level_starts[level], trie.level_starts[level + 1])
        assert [len(prefixes[node]) for node in nodes] == [level] * len(nodes)
        # The nodes of a level are in the order of their prefixes.
        assert [prefixes[node] for node in nodes] == sorted({row[:level] for row in rows})
    assert trie.level_starts[-1] == trie.num_nodes
    for item, row in enumerate(rows):
        path = trie.paths[item].tolist()
        assert [prefixes[node] for node in path] == [row[: i + 1] for i in range(len(row))]
        assert trie.leaf_items[path[-1] - trie.first_leaf] == item
    for node, prefix in prefixes.items():
        below = trie.leaf_items[trie.leaf_starts[node] : trie.leaf_ends[node]].tolist()
        assert sorted(below) == [i for i, row in enumerate(rows) if row[: len(prefix)] == prefix]


@settings(max_examples=150, deadline=None)
@given(ids(), st.data())
def test_restricted_to_items_only_their_prefixes_stay(rows, data):
    trie = build_trie(np.array(rows, dtype=np.int32))
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    part = trie.restrict(np.array(kept))
    following = as_dict([row for row, keep in zip(rows, kept, strict=True) if keep])
    prefixes = prefixes_of_nodes(trie)
    for node, prefix in prefixes.items():
        children = part.nodes[part.starts[node] : part.starts[node + 1]]
        # The nodes have the same numbers in both.
        assert [prefixes[child][-1] for child in children] == following.get(prefix, [])
        assert set(children) <= set(children_of(trie, node))


def test_ids_too_wide_to_sort_as_one_number():
    codes = np.random.default_rng(0).integers(0, 2**30, (200, 3)).astype(np.int32)
    codes[:100, 0] = codes[0, 0]
    trie = build_trie(codes)
    assert codes[trie.leaf_items].tolist() == sorted(codes.tolist())


def test_equal_ids_are_refused():
    with pytest.raises(ValueError, match="unique IDs"):
        build_trie(np.array([[0, 1], [1, 0], [0, 1]], dtype=np.int32))
