"""Which words a text has, the rare ones counting most (TF-IDF): two texts share words or do not.

Sentence encoders blur names and brands, which tell what people choose: items that share rare words
go together in histories more often than items whose vectors are near.

Shapes: N items, n some of them, W terms.
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

# The most frequent terms; the many that occur once tie no two items together.
MAX_TERMS = 100_000
# Single letters count: titles such as "M" or "Z" have nothing else.
WORD_PATTERN = r"(?u)\b\w+\b"
TERMS_NAME = "terms.parquet"
ITEM_WORDS_NAME = "item_words.safetensors"
# Pairs of items that are compared at most, a term at a time. The most frequent terms go first where
# there are more: they say least, and theirs are the most pairs.
MAX_PAIRS = 2**33
# Pairs held at once.
PAIRS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Terms:
    """The words and word pairs of a catalogue's texts.

    Args:
        terms: In the order of the columns.
        inverse_frequencies: float32 ``[W]``, weight of each.
    """

    terms: pl.Series
    inverse_frequencies: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Terms:
        """The terms of these texts.

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
        """float32 ``[n, W]``, rows of length 1; nothing for unknown words."""
        from scipy.sparse import csr_array

        vectorizer = _build_vectorizer(vocabulary={t: i for i, t in enumerate(self.terms)})
        vectorizer.idf_ = self.inverse_frequencies
        return csr_array(vectorizer.transform(texts))

    def save(self, directory: Path) -> None:
        """Write ``terms.parquet``."""
        frame = pl.DataFrame({"term": self.terms, "inverse_frequency": self.inverse_frequencies})
        frame.write_parquet(directory / TERMS_NAME)

    @classmethod
    def load(cls, directory: Path) -> Terms:
        """Read what `save` wrote."""
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
            raise DataError(f"The terms in {directory} are no different words with weights.")
        return cls(terms, weights.to_numpy())


def has_words(texts: Sequence[str]) -> bool:
    """Whether any text has a word."""
    return any(any(character.isalnum() for character in text) for text in texts)


def save_words(words: csr_array, directory: Path) -> None:
    """Write the words of all items."""
    from safetensors.numpy import save_file

    arrays = {"data": words.data, "indices": words.indices, "indptr": words.indptr}
    save_file({**arrays, "shape": np.array(words.shape)}, directory / ITEM_WORDS_NAME)


def load_words(directory: Path) -> csr_array | None:
    """Read what `save_words` wrote; None where nothing was written.

    Raises:
        ValueError: Offsets or terms are out of range.
    """
    from safetensors.numpy import load_file
    from scipy.sparse import csr_array

    path = directory / ITEM_WORDS_NAME
    if not path.is_file():
        return None
    arrays = load_file(path)
    entries = (arrays["data"], arrays["indices"], arrays["indptr"])
    words = csr_array(entries, shape=tuple(arrays["shape"].tolist()))
    # Offsets and terms that lie would be followed outside of memory.
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
    """The cosines of some items with those of others whose words are most like theirs.

    Args:
        words: float32 ``[N, W]``, rows of length 1.
        items: int64 ``[n]``.
        among: int64, the others.
        num_kept: Most cosines of an item.

    Returns:
        float32 ``[n, N]``; an item is not like itself.
    """
    from scipy.sparse import csr_array, vstack

    frequencies = np.bincount(words.indices, minlength=words.shape[1])
    rising = np.argsort(frequencies, kind="stable")
    pairs = np.cumsum(np.square(frequencies[rising], dtype=np.float64))
    is_kept = np.ones(len(frequencies), dtype=bool)
    is_kept[rising[pairs > MAX_PAIRS]] = False
    if not is_kept.all():
        logger.info(
            "likeness by words leaves out the %d most frequent of %d terms: too many pairs",
            np.count_nonzero(~is_kept),
            len(is_kept),
        )
    is_other = np.zeros(len(words.indptr) - 1, dtype=bool)
    is_other[among] = True
    asked = _keep_entries(words[items], is_kept)
    others = _keep_entries(words, is_kept, np.repeat(is_other, np.diff(words.indptr)))
    by_term = csr_array(others.T)
    # Pairs up to the end of each item's row.
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
    """A copy with these terms, and of these entries, alone."""
    copy = words.copy()
    keep = is_kept[copy.indices]
    copy.data[~(keep if entries is None else keep & entries)] = 0
    copy.eliminate_zeros()
    return copy


def keep_largest(table: Any, num_kept: int) -> csr_array:
    """Drop all but so many entries of each row; changes what it is given."""
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
