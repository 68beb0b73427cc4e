"""Latent semantic analysis: item vectors from word counts alone, no weights to fetch.

TF-IDF over words and word pairs, then a truncated SVD (Deerwester et al., 1990). It knows no
synonyms a catalogue does not show, but needs seconds where a sentence encoder needs minutes, and
the same seed gives the same vectors.

The vectors are fitted to the texts at hand: those of two fits live in different spaces. What was
fitted can be kept, and then encodes texts that come later into the same space; words that the first
texts did not have say nothing there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import digest_json
from recgrit.embedding.embeddings import normalize_rows
from recgrit.errors import DataError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

log = logging.getLogger(__name__)

# The most frequent terms; the many that occur once tie no two items together.
MAX_TERMS = 100_000
# Single letters count: titles such as "M" or "Z" have nothing else.
WORD_PATTERN = r"(?u)\b\w+\b"
TERMS_NAME = "lsa_terms.parquet"
DIRECTIONS_NAME = "lsa_directions.safetensors"


class LSAEncoder:
    """TF-IDF of words and word pairs, reduced by SVD; its rows are normalized.

    Args:
        dim: Length of the vectors; fewer where the texts hold fewer terms.
        seed: Of the randomized SVD.
    """

    name = "lsa"

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
        return self.fit(texts).encode(texts)

    def fit(self, texts: Sequence[str]) -> FittedLSA:
        """The terms of these texts and the directions they vary in most.

        Raises:
            DataError: No text has a word.
        """
        from sklearn.utils.extmath import randomized_svd

        if not any(any(character.isalnum() for character in text) for text in texts):
            raise DataError(f"None of the {len(texts)} item texts has a word to encode.")
        vectorizer = _build_vectorizer(max_features=MAX_TERMS)
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
        return FittedLSA(
            terms=pl.Series("term", vectorizer.get_feature_names_out().tolist(), pl.String),
            inverse_frequencies=np.asarray(vectorizer.idf_, dtype=np.float32),
            directions=np.ascontiguousarray(directions, dtype=np.float32),
        )


@dataclass(frozen=True)
class FittedLSA:
    """What `LSAEncoder.fit` found; encodes any texts into one space.

    Args:
        terms: The words and word pairs, in the order of the columns.
        inverse_frequencies: float32 ``[terms]``, weight of each.
        directions: float32 ``[embedding_dim, terms]``.
    """

    terms: pl.Series
    inverse_frequencies: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float32]

    name = LSAEncoder.name

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the vectors."""
        numbers = self.inverse_frequencies.tobytes() + self.directions.tobytes()
        return digest_json([self.terms.to_list(), hashlib.sha256(numbers).hexdigest()])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), embedding_dim], rows of length 1; zeros for unknown words."""
        vectorizer = _build_vectorizer(vocabulary={t: i for i, t in enumerate(self.terms)})
        vectorizer.idf_ = self.inverse_frequencies
        # Projecting, rather than taking the left vectors, gives equal texts bit-equal rows.
        return normalize_rows(vectorizer.transform(texts) @ self.directions.T)

    def save(self, directory: Path) -> None:
        """Write the terms as Parquet and the directions as safetensors."""
        from safetensors.numpy import save_file

        self.terms.to_frame().write_parquet(directory / TERMS_NAME)
        save_file(
            {
                "directions": self.directions,
                "inverse_frequencies": self.inverse_frequencies,
            },
            directory / DIRECTIONS_NAME,
        )

    @classmethod
    def load(cls, directory: Path) -> FittedLSA:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(directory / DIRECTIONS_NAME)
        return cls(pl.read_parquet(directory / TERMS_NAME, glob=False)["term"], **arrays)


def _build_vectorizer(
    *, max_features: int | None = None, vocabulary: dict[str, int] | None = None
) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=max_features,
        vocabulary=vocabulary,
        token_pattern=WORD_PATTERN,
        dtype=np.float32,
    )
