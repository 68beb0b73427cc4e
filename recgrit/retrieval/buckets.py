"""Hashed rows for nodes in a table with fewer rows than the trie has nodes.

A node's row is the hash of its parent's path, plus its code, modulo the number of rows. Children of
one node are compared at every step, and with these rows they never share one. Which other nodes
share a row is as good as random. The hash uses codes and no node numbers, so a node keeps its row
when items are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.errors import ConfigError
from recgrit.semantic_ids.trie import Trie

# Constants of splitmix64, a generator of random numbers: its increment and its finaliser.
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def assign_buckets(trie: Trie, num_buckets: int) -> npt.NDArray[np.int32]:
    """Return the row of each node, int32 ``[V]`` for V nodes; the root has row 0.

    Args:
        trie: Trie of the whole catalogue.
        num_buckets: Number of rows of the table.
    """
    rows = np.zeros(trie.num_nodes, dtype=np.int32)
    size = np.uint64(num_buckets)
    hashes = mix(np.zeros(1, dtype=np.uint64))
    for depth in range(trie.num_levels):
        first, last, end = (int(start) for start in trie.level_starts[depth : depth + 3])
        # Nodes are numbered breadth-first, so the next level is the lists of children, in order.
        hashes = np.repeat(hashes, np.diff(trie.child_starts[first : last + 1]))
        codes = trie.node_codes[last:end].astype(np.uint64)
        rows[last:end] = (hashes % size + codes) % size
        hashes = mix(hashes + (codes + np.uint64(1)) * INCREMENT)
    return rows


def check_buckets(num_buckets: int, codebook_sizes: list[int]) -> None:
    """Raise an error if children of one node would share rows.

    Args:
        num_buckets: Number of rows of the table.
        codebook_sizes: Number of codes of each level.

    Raises:
        ConfigError: A codebook is larger than the table.
    """
    largest = int(np.argmax(codebook_sizes))
    if codebook_sizes[largest] > num_buckets:
        raise ConfigError(
            f"retriever.node_buckets is {num_buckets}, but the codebook of level {largest + 1} "
            f"has {codebook_sizes[largest]} codes, so children of one node would share an "
            f"embedding. Set retriever.node_buckets to at least {codebook_sizes[largest]}, or to "
            "null for an embedding per node."
        )


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Map each number to a hash of 64 bits; different numbers get different hashes.

    Example:
        >>> [hex(value) for value in mix(np.array([0, 1], dtype=np.uint64) + INCREMENT)]
        ['0xe220a8397b1dcdaf', '0x910a2dec89025cc1']
    """
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        values = (values ^ (values >> shift)) * multiplier
    return values ^ (values >> SHIFTS[-1])
