"""Latent semantic analysis (LSA): item vectors from word counts, without pretrained weights.

LSA computes TF-IDF over words and word pairs and reduces it by a truncated SVD (Deerwester et al.,
1990). It knows only the synonyms that the catalogue's texts show. It takes seconds where a sentence
encoder takes minutes. The same seed gives the same vectors.

The vectors are fitted to the given texts, so the vectors of two fits lie in different spaces. A
saved fit encodes later texts into its own space. Words that the first texts lack do not affect the
vectors of later texts.
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
    """A text encoder that applies TF-IDF to words and word pairs and reduces it by SVD.

    The vectors have length 1.

    Args:
        dim: Length of the vectors. The vectors are shorter if there are fewer texts or terms.
        seed: Seed of the randomized SVD.
    """

    name = "lsa"

    def __init__(self, *, dim: int = 128, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed

    @property
    def fingerprint(self) -> str:
        """Hash of all settings that determine the vectors."""
        return digest_json([self.name, self.dim, self.seed, MAX_TERMS, WORD_PATTERN])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Fit the encoder to the texts and return their vectors.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1, or zeros for a text
            without words.

        Raises:
            DataError: No text has a word.
        """
        return self.fit(texts).encode(texts)

    def fit(self, texts: Sequence[str]) -> FittedLSA:
        """Find the terms of the texts and the directions in which the term counts vary most.

        Raises:
            DataError: No text has a word.
        """
        from sklearn.utils.extmath import randomized_svd

        terms = Terms.fit(texts)
        counts = terms.encode(texts)
        dim = min(self.dim, *counts.shape)
        if dim < self.dim:
            log.warning(
                "LSA vectors have %d dimensions instead of %d: %d texts with %d terms "
                "allow no more",
                dim,
                self.dim,
                *counts.shape,
            )
        _, _, directions = randomized_svd(counts, dim, random_state=self.seed)
        return FittedLSA(terms, np.ascontiguousarray(directions, dtype=np.float32))


@dataclass(frozen=True)
class FittedLSA:
    """A fitted LSA encoder, which encodes all texts into one space.

    Args:
        terms: Words and word pairs of the texts it was fitted to.
        directions: Projection from terms to vectors, float32 ``[embedding_dim, number of terms]``.

    Raises:
        DataError: The directions have a wrong type or shape, or values that are not finite.
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
        """Hash of the terms, their weights and the directions, which determine the vectors."""
        numbers = self.terms.inverse_frequencies.tobytes() + self.directions.tobytes()
        return digest_json([self.terms.terms.to_list(), hashlib.sha256(numbers).hexdigest()])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts as vectors.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1, or zeros for a text with
            unknown words only.
        """
        # Projecting gives equal texts bit-equal rows. The left singular vectors do not.
        return normalize_rows(self.terms.encode(texts) @ self.directions.T)

    def save(self, directory: Path) -> None:
        """Write the terms as Parquet and the directions as safetensors into a folder."""
        from safetensors.numpy import save_file

        self.terms.save(directory)
        save_file({"directions": self.directions}, directory / DIRECTIONS_NAME)

    @classmethod
    def load(cls, directory: Path) -> FittedLSA:
        """Read a fitted encoder from a folder that `save` wrote."""
        from safetensors.numpy import load_file

        return cls(Terms.load(directory), load_file(directory / DIRECTIONS_NAME)["directions"])
