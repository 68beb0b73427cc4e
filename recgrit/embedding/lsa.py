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

import numpy as np
import numpy.typing as npt

from recgrit.checksums import digest_json
from recgrit.embedding.embeddings import normalize_rows
from recgrit.embedding.words import MAX_TERMS, WORD_PATTERN, Terms
from recgrit.errors import DataError

log = logging.getLogger(__name__)

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

        terms = Terms.fit(texts)
        counts = terms.encode(texts)
        dim = min(self.dim, *counts.shape)
        if dim < self.dim:
            log.warning(
                "LSA vectors have %d dimensions instead of %d: %d texts with %d terms hold no more",
                dim,
                self.dim,
                *counts.shape,
            )
        _, _, directions = randomized_svd(counts, dim, random_state=self.seed)
        return FittedLSA(terms, np.ascontiguousarray(directions, dtype=np.float32))


@dataclass(frozen=True)
class FittedLSA:
    """What `LSAEncoder.fit` found; encodes any texts into one space.

    Args:
        terms: The words and word pairs.
        directions: float32 ``[embedding_dim, terms]``.
    """

    terms: Terms
    directions: npt.NDArray[np.float32]

    name = LSAEncoder.name

    def __post_init__(self) -> None:
        found = self.directions
        if (
            found.dtype != np.float32
            or found.ndim != 2
            or found.shape[1] != len(self.terms.terms)
            or not len(found)
            or not np.isfinite(found).all()
        ):
            raise DataError(
                f"The directions of LSA are {found.dtype} of shape {list(found.shape)}: expected "
                f"finite float32 for each of {len(self.terms.terms)} terms."
            )

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the vectors."""
        numbers = self.terms.inverse_frequencies.tobytes() + self.directions.tobytes()
        return digest_json([self.terms.terms.to_list(), hashlib.sha256(numbers).hexdigest()])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), embedding_dim], rows of length 1; zeros for unknown words."""
        # Projecting, rather than taking the left vectors, gives equal texts bit-equal rows.
        return normalize_rows(self.terms.encode(texts) @ self.directions.T)

    def save(self, directory: Path) -> None:
        """Write the terms as Parquet and the directions as safetensors."""
        from safetensors.numpy import save_file

        self.terms.save(directory)
        save_file({"directions": self.directions}, directory / DIRECTIONS_NAME)

    @classmethod
    def load(cls, directory: Path) -> FittedLSA:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        return cls(Terms.load(directory), load_file(directory / DIRECTIONS_NAME)["directions"])
