"""Item vectors from co-occurrence in histories: the positive PMI of item pairs, reduced by SVD.

Skip-gram with negative sampling implicitly factorizes a shifted PMI matrix (Levy & Goldberg, 2014,
"Neural word embedding as implicit matrix factorization"). Factorizing the positive PMI by SVD does
as well with fewer choices (Levy, Goldberg & Dagan, 2015, "Improving distributional similarity with
lessons learned from word embeddings"). That paper also raises the context distribution to the power
of .75, so that rare contexts do not get the largest PMI, and uses the rows of U sqrt(S).

Only training histories are counted, because a pair with a validation or test target would leak what
the model has to predict. Memory is linear in the number of distinct pairs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from recgrit.data.splits import SequenceSplit
from recgrit.embedding.embeddings import Embeddings, normalize_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

log = logging.getLogger(__name__)

CONTEXT_POWER = 0.75
# Number of power iterations of the SVD. Catalogues have flat spectra, so with fewer iterations the
# trailing directions would be random.
POWER_ITERATIONS = 7
# Singular values below this share of the largest are rounding residue.
MIN_RELATIVE_STRENGTH = 1e-6


def build_cooccurrence_vectors(
    split: SequenceSplit, *, dim: int = 64, window: int = 10, seed: int = 0
) -> Embeddings:
    """Return item vectors that are close for items near each other in training sequences.

    Args:
        split: Sequences to count. Only their training histories are read.
        dim: Length of the vectors. Columns beyond the rank of the matrix are zero.
        window: Maximum distance, in positions of a history, at which two items count as a pair.
        seed: Seed of the randomized SVD.

    Returns:
        Normalized vectors. An item that meets no other item more often than by chance has zeros.
    """
    from sklearn.utils.extmath import randomized_svd

    matrix = positive_pmi(count_pairs(split, window))
    vectors = np.zeros((split.num_items, dim), np.float32)
    seen = np.flatnonzero(np.diff(matrix.indptr))
    if len(seen):
        left, strengths, _ = randomized_svd(
            matrix[seen], min(dim, len(seen)), n_iter=POWER_ITERATIONS, random_state=seed
        )
        strengths[strengths < MIN_RELATIVE_STRENGTH * strengths[0]] = 0
        vectors[seen, : len(strengths)] = normalize_rows(left * np.sqrt(strengths))
    log.info("Co-occurrence vectors for %d of %d items", len(seen), split.num_items)
    return Embeddings(vectors, f"cooccurrence-w{window}", normalized=True)


def count_pairs(split: SequenceSplit, window: int) -> csr_array:
    """Count how often two items are within ``window`` positions of each other in training.

    Returns:
        Symmetric counts, float64 ``[num_items, num_items]``. Pairs of an item with itself are not
        counted.
    """
    from scipy.sparse import coo_array, csr_array

    mask = split.train_mask()
    items = np.asarray(split.items)[mask]
    users = np.repeat(np.arange(split.num_sequences), np.diff(split.offsets))[mask]
    shape = (split.num_items, split.num_items)
    counts = csr_array(shape, dtype=np.float64)
    # One distance at a time: a user's training part is contiguous, so shifting the flat array
    # aligns all pairs of that distance. Only distinct pairs are kept between distances.
    for distance in range(1, min(window, len(items) - 1) + 1):
        earlier, later = items[:-distance], items[distance:]
        is_pair = (users[:-distance] == users[distance:]) & (earlier != later)
        pairs = (earlier[is_pair], later[is_pair])
        counts = counts + coo_array((np.ones(len(pairs[0])), pairs), shape=shape).tocsr()
    return (counts + counts.T).tocsr()


def positive_pmi(counts: csr_array) -> csr_array:
    """Return the positive pointwise mutual information, max(0, log P(i, j) / (P(i) P'(j))).

    P' is the context distribution, proportional to each item's count to the power of .75.

    Args:
        counts: Symmetric counts of item pairs, from `count_pairs`.
    """
    matrix = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64)
    contexts = totals**CONTEXT_POWER
    rows, columns = matrix.coords
    expected = totals[rows] * contexts[columns] / contexts.sum()
    matrix.data = np.maximum(np.log(matrix.data / expected), 0)
    matrix.eliminate_zeros()
    return matrix.tocsr()
