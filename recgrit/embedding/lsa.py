"""Latent semantic analysis: item vectors from word counts alone, no weights to fetch.

TF-IDF over words and word pairs, then a truncated SVD (Deerwester et al., 1990). It knows no
synonyms a catalogue does not show, but needs seconds where a sentence encoder needs minutes, and
the same seed gives the same vectors.

The vectors are fitted to the texts at hand: those of two calls live in different spaces.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recgrit.artifacts import digest_json
from recgrit.embedding.embeddings import normalize_rows
from recgrit.errors import DataError

log = logging.getLogger(__name__)

# The most frequent terms; the many that occur once tie no two items together.
MAX_TERMS = 100_000
# Single letters count: titles such as "M" or "Z" have nothing else.
WORD_PATTERN = r"(?u)\b\w+\b"


class LSAEncoder:
    """TF-IDF of words and word pairs, reduced by SVD; its rows are normalized.

    Args:
        dim: Length of the vectors; fewer where the texts hold fewer terms.
        seed: Of the randomized SVD.
    """

    name = "lsa"

    encodes_alone = False

    def __init__(self, *, dim: int = 128, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the vectors."""
        return digest_json([self.name, self.dim, self.seed, MAX_TERMS, WORD_PATTERN])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), embedding_dim], rows of length 1; zeros for a text without words.

        Raises:
            DataError: No text has a word.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        if not any(any(character.isalnum() for character in text) for text in texts):
            raise DataError(f"None of the {len(texts)} item texts has a word to encode.")
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            max_features=MAX_TERMS,
            token_pattern=WORD_PATTERN,
            dtype=np.float32,
        )
        counts = vectorizer.fit_transform(texts)
        dim = min(self.dim, *counts.shape)
        if dim < self.dim:
            log.warning(
                "LSA vectors have %d dimensions instead of %d: %d texts with %d terms hold no more",
                dim,
                self.dim,
                *counts.shape,
            )
        _, _, directions = randomized_svd(counts, dim, random_state=self.seed)
        # Projecting, rather than taking the left vectors, gives equal texts bit-equal rows.
        return normalize_rows(counts @ directions.T)
