"""Words of item texts as TF-IDF vectors, in which rare words have the largest weights.

Sentence encoders blur names and brands, which users choose by. Items that share rare words appear
together in histories more often than items whose sentence vectors are close.

Shapes: N items of the catalogue, n selected items or texts, W terms.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.errors import DataError
from recgrit.progress import progress_bar

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer

logger = logging.getLogger(__name__)

# Maximum number of terms to keep. The most frequent are kept, because a term that occurs once
# connects no two items.
MAX_TERMS = 100_000
# A single letter is a word, because titles such as "M" or "Z" have nothing else.
WORD_PATTERN = r"(?u)\b\w+\b"
TERMS_NAME = "terms.parquet"
ITEM_WORDS_NAME = "item_words.safetensors"
# Maximum number of item pairs to compare, summed over terms. If there are more, the most frequent
# terms are ignored first: they say least about an item and cause the most pairs.
MAX_PAIRS = 2**33
# Number of item pairs to hold in memory at once.
PAIRS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Terms:
    """The words and word pairs of a catalogue's texts, with their TF-IDF weights.

    Shapes: W terms.

    Args:
        terms: Words and word pairs, in the order of the columns of `encode`.
        inverse_frequencies: Inverse document frequency of each term, float32 ``[W]``.
    """

    terms: pl.Series
    inverse_frequencies: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Terms:
        """Collect the terms of the given texts, at most `MAX_TERMS`.

        Raises:
            DataError: No text has a word.
        """
        if not has_words(texts):
            raise DataError(f"None of the {len(texts)} item texts has a word to encode.")
        vectorizer = _build_vectorizer(max_features=MAX_TERMS)
        vectorizer.fit(texts)
        return cls(
            pl.Series("term", vectorizer.get_feature_names_out().tolist(), pl.String),
            np.asarray(vectorizer.idf_, dtype=np.float32),
        )

    def encode(self, texts: Sequence[str]) -> csr_array:
        """Return the TF-IDF vectors of texts, in which unknown words do not count.

        Shapes: n texts, W terms.

        Returns:
            float32 ``[n, W]``, with rows of length 1, or empty rows for texts without known words.
        """
        from scipy.sparse import csr_array

        vectorizer = _build_vectorizer(vocabulary={t: i for i, t in enumerate(self.terms)})
        vectorizer.idf_ = self.inverse_frequencies
        return csr_array(vectorizer.transform(texts))

    def save(self, directory: Path) -> None:
        """Write the terms and their weights to ``terms.parquet`` in a folder."""
        frame = pl.DataFrame({"term": self.terms, "inverse_frequency": self.inverse_frequencies})
        frame.write_parquet(directory / TERMS_NAME)

    @classmethod
    def load(cls, directory: Path) -> Terms:
        """Read terms from a folder that `save` wrote.

        Raises:
            DataError: Terms are repeated or missing, or their weights are not positive numbers.
        """
        frame = pl.read_parquet(directory / TERMS_NAME, glob=False)
        terms, weights = frame["term"], frame["inverse_frequency"]
        if (
            terms.dtype != pl.String
            or weights.dtype != pl.Float32
            or terms.null_count()
            or not len(terms)
            or terms.n_unique() != len(terms)
            or not (weights.is_finite() & (weights > 0)).all(ignore_nulls=False)
        ):
            raise DataError(f"The terms in {directory} are not distinct words with weights.")
        return cls(terms, weights.to_numpy())


def has_words(texts: Sequence[str]) -> bool:
    """Return whether at least one text has a letter or digit."""
    return any(any(character.isalnum() for character in text) for text in texts)


def save_words(words: csr_array, directory: Path) -> None:
    """Write the TF-IDF vectors of all items to a file in a folder."""
    from safetensors.numpy import save_file

    arrays = {"data": words.data, "indices": words.indices, "indptr": words.indptr}
    save_file({**arrays, "shape": np.array(words.shape)}, directory / ITEM_WORDS_NAME)


def load_words(directory: Path) -> csr_array | None:
    """Read the TF-IDF vectors that `save_words` wrote, or return None if there is no such file.

    Raises:
        ValueError: Offsets or terms are out of range, or weights are not finite float32 numbers.
    """
    from safetensors.numpy import load_file
    from scipy.sparse import csr_array

    path = directory / ITEM_WORDS_NAME
    if not path.is_file():
        return None
    arrays = load_file(path)
    entries = (arrays["data"], arrays["indices"], arrays["indptr"])
    words = csr_array(entries, shape=tuple(arrays["shape"].tolist()))
    # Damaged offsets and terms would make scipy read outside the arrays.
    words.check_format(full_check=True)
    if words.dtype != np.float32 or not np.isfinite(words.data).all():
        raise ValueError(f"weights of words are {words.dtype}, expected finite float32")
    return words


def find_same_words(
    words: csr_array,
    items: npt.NDArray[np.int64],
    among: npt.NDArray[np.int64],
    num_kept: int,
) -> csr_array:
    """Return the largest cosine similarities, by words, between some items and candidate items.

    If there are more than `MAX_PAIRS` pairs to compare, the most frequent terms are ignored.

    Shapes: N items of the catalogue, W terms, n selected items.

    Args:
        words: TF-IDF vectors of all items, float32 ``[N, W]``, with rows of length 1.
        items: Items to find similar items for, int64 ``[n]``.
        among: Candidate items, int64. An item is never its own candidate.
        num_kept: Maximum number of similarities to keep per item.

    Returns:
        Cosine similarities, float32 ``[n, N]``; all but the largest ``num_kept`` of each row are 0.
    """
    from scipy.sparse import csr_array, vstack

    frequencies = np.bincount(words.indices, minlength=words.shape[1])
    rising = np.argsort(frequencies, kind="stable")
    pairs = np.cumsum(np.square(frequencies[rising], dtype=np.float64))
    is_kept = np.ones(len(frequencies), dtype=bool)
    is_kept[rising[pairs > MAX_PAIRS]] = False
    if not is_kept.all():
        logger.info(
            "word similarity ignores the %d most frequent of %d terms, because they would make "
            "too many pairs",
            np.count_nonzero(~is_kept),
            len(is_kept),
        )
    is_other = np.zeros(len(words.indptr) - 1, dtype=bool)
    is_other[among] = True
    asked = _keep_entries(words[items], is_kept)
    others = _keep_entries(words, is_kept, np.repeat(is_other, np.diff(words.indptr)))
    by_term = csr_array(others.T)
    # Cumulative number of pairs up to the start of each item's row.
    ends = np.concatenate([[0], np.cumsum(np.diff(by_term.indptr)[asked.indices])])[asked.indptr]
    parts: list[Any] = [csr_array((0, words.shape[0]), dtype=np.float32)]
    start = 0
    with progress_bar("compare words", len(items)) as bar:
        while start < len(items):
            upto = int(np.searchsorted(ends, ends[start] + PAIRS_AT_ONCE, "right")) - 1
            end = max(start + 1, upto)
            found = csr_array(asked[start:end] @ by_term)
            found.data[found.indices == np.repeat(items[start:end], np.diff(found.indptr))] = 0
            parts.append(keep_largest(found, num_kept))
            bar.advance(end - start)
            start = end
    return csr_array(vstack(parts, format="csr"))


def _keep_entries(
    words: csr_array,
    is_kept: npt.NDArray[np.bool_],
    entries: npt.NDArray[np.bool_] | None = None,
) -> csr_array:
    """Return a copy that has only the selected terms and, if given, only the selected entries."""
    copy = words.copy()
    keep = is_kept[copy.indices]
    copy.data[~(keep if entries is None else keep & entries)] = 0
    copy.eliminate_zeros()
    return copy


def keep_largest(table: Any, num_kept: int) -> csr_array:
    """Set all but the ``num_kept`` largest entries of each row of ``table`` to zero, in place."""
    for start, end in zip(table.indptr[:-1], table.indptr[1:], strict=True):
        values = table.data[start:end]
        if len(values) > num_kept:
            values[np.argpartition(values, -num_kept)[:-num_kept]] = 0
    table.eliminate_zeros()
    kept: csr_array = table
    return kept


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
