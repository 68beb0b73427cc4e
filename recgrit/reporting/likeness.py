"""The similarity of items by the number of codes that they share, to see if IDs are semantic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.reporting.tags import Tags
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.semantic_ids.trie import build_trie

NUM_PAIRS = 20_000


@dataclass(frozen=True)
class Likeness:
    """The mean similarity of pairs of items whose IDs begin with the same codes.

    Args:
        shared_levels: Least number of first codes that the two items share. 0 is a pair of any two
            items.
        num_items: Number of items that share so many codes with at least one other item.
        num_pairs: Number of pairs drawn.
        cosine: Mean cosine similarity of the features of the two items.
        common_tags: Mean share of common tags among all tags of the two items (Jaccard). None if
            items have no tags.
    """

    shared_levels: int
    num_items: int
    num_pairs: int
    cosine: float
    common_tags: float | None


def measure_likeness(
    table: SemanticIdTable, features: npt.NDArray[np.float32], tags: Tags, *, seed: int
) -> tuple[Likeness, ...]:
    """Measure the similarity of random pairs of items, for each number of shared first codes.

    A pair is an item that shares a prefix with others, and one of those others. The disambiguation
    level has no meaning and is left out.

    Args:
        table: ID table of all items.
        features: Features of all items, float32 ``[N, F]`` for N items and F features.
        tags: Tags of the items.
        seed: Seed of the random pairs.
    """
    trie = build_trie(table.codes)
    draw = np.random.default_rng(seed)
    num_levels = table.disambiguation_level
    if num_levels is None:
        num_levels = table.id_length - 1  # Whole IDs are unique, so no two items share all codes.
    place = np.empty(trie.num_items, dtype=np.int64)
    place[trie.leaf_items] = np.arange(trie.num_items)
    tag_sets: dict[int, set[str]] = {}
    for item, tag in tags.pairs.iter_rows():
        tag_sets.setdefault(item, set()).add(tag)
    found = []
    for shared in range(num_levels + 1):
        nodes = trie.paths[:, shared - 1] if shared else np.zeros(trie.num_items, np.int64)
        starts, ends = trie.leaf_starts[nodes], trie.leaf_ends[nodes]
        in_company = np.flatnonzero(ends - starts > 1)
        if not len(in_company):
            break
        first = draw.choice(in_company, NUM_PAIRS)
        # Draw one of the other items: a place among all but one, moved past the first item.
        other = starts[first] + draw.integers(0, ends[first] - starts[first] - 1)
        second = trie.leaf_items[other + (other >= place[first])]
        found.append(
            Likeness(
                shared_levels=shared,
                num_items=len(in_company),
                num_pairs=NUM_PAIRS,
                cosine=_mean_cosine(features[first], features[second]),
                common_tags=_mean_jaccard(first, second, tag_sets),
            )
        )
    return tuple(found)


def _mean_cosine(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1)).mean())


def _mean_jaccard(
    first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], tags: dict[int, set[str]]
) -> float | None:
    shares = [
        len(tags[a] & tags[b]) / len(tags[a] | tags[b])
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
        if a in tags and b in tags
    ]
    return float(np.mean(shares)) if shares else None
