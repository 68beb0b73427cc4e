"""Rows for nodes in a table that is smaller than the trie: hashed buckets.

A node's row is the hash of its parent's path, plus its code, modulo the size of the table. So
siblings, which are told apart at every step, never share a row; what shares one is as good as drawn
at random. Only codes go in, not node numbers: a node keeps its row when items are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.errors import ConfigError
from recgrit.semantic_ids.trie import Trie

# The increment and the finaliser of splitmix64, a generator of random numbers.
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def assign_buckets(trie: Trie, num_buckets: int) -> npt.NDArray[np.int32]:
    """The row of each node, int32 ``[V]``; the root, nobody's child, has row 0.

    Args:
        trie: The trie of the whole catalogue.
        num_buckets: Rows of the table.
    """
    rows = np.zeros(trie.num_nodes, dtype=np.int32)
    size = np.uint64(num_buckets)
    hashes = mix(np.zeros(1, dtype=np.uint64))
    for depth in range(trie.num_levels):
        first, last, end = (int(start) for start in trie.level_starts[depth : depth + 3])
        # Breadth-first numbering: the next level is the lists of children, in order.
        hashes = np.repeat(hashes, np.diff(trie.child_starts[first : last + 1]))
        codes = trie.node_codes[last:end].astype(np.uint64)
        rows[last:end] = (hashes % size + codes) % size
        hashes = mix(hashes + (codes + np.uint64(1)) * INCREMENT)
    return rows


def check_buckets(num_buckets: int, codebook_sizes: list[int]) -> None:
    """Refuse a table in which siblings would share rows.

    Args:
        num_buckets: Rows of the table.
        codebook_sizes: Codes of each level.

    Raises:
        ConfigError: A codebook is larger than the table.
    """
    largest = int(np.argmax(codebook_sizes))
    if codebook_sizes[largest] > num_buckets:
        raise ConfigError(
            f"retriever.node_buckets is {num_buckets}, but the codebook of level {largest + 1} "
            f"has {codebook_sizes[largest]} codes, so that children of one node would share an "
            f"embedding. Set retriever.node_buckets to at least {codebook_sizes[largest]}, or to "
            "null for an embedding per node."
        )


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread numbers over 64 bits, one to one.

    Example:
        >>> [hex(value) for value in mix(np.array([0, 1], dtype=np.uint64) + INCREMENT)]
        ['0xe220a8397b1dcdaf', '0x910a2dec89025cc1']
    """
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        values = (values ^ (values >> shift)) * multiplier
    return values ^ (values >> SHIFTS[-1])
