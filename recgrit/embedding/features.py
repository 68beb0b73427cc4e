"""What the tokenizer quantizes: the text of an item and, beside it, who it is taken with.

Two items with like texts may appeal to different people. Co-occurrence in *training* sequences
tells them apart; quantized together with the text it makes semantic IDs collaborative. Each part is
reduced to its leading principal components and scaled to unit mean square norm, so that a weight
of 1 gives both an equal say.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recgrit.config import Config
from recgrit.embedding.embeddings import Embeddings, normalize_rows

# Rows filled at once: bounds the table of likeness with all items.
FILL_CHUNK = 256


class FeatureConfig(Config):
    """How item features are put together.

    Args:
        text_dim: Principal components of the text embedding; None keeps all dimensions, centred.
        cooccurrence_dim: Dimensions of the co-occurrence part.
        cooccurrence_weight: Scale of the co-occurrence part beside the text's; 0 leaves it out.
        cooccurrence_window: Positions within which two items of a user count as taken together.
    """

    text_dim: int | None = Field(64, ge=1)
    cooccurrence_dim: int = Field(64, ge=1)
    cooccurrence_weight: float = Field(0.5, ge=0)
    cooccurrence_window: int = Field(10, ge=1)


def build_features(
    text: Embeddings,
    cooccurrence: Embeddings | None,
    *,
    text_dim: int | None = 64,
    cooccurrence_weight: float = 0.5,
) -> Embeddings:
    """Text and co-occurrence vectors side by side, each of unit mean square norm times its weight.

    Args:
        text: Text embeddings, ``[num_items, …]``.
        cooccurrence: Co-occurrence vectors of the same items, None for text alone.
        text_dim: Principal components to keep of the text; None for all dimensions.
        cooccurrence_weight: Scale of the co-occurrence part.
    """
    parts = [_standardize(_reduce(text.vectors, text_dim))]
    name = text.encoder
    if cooccurrence is not None:
        filled = fill_missing(cooccurrence.vectors, parts[0])
        parts.append(_standardize(filled) * np.float32(cooccurrence_weight))
        name = f"{name} + {cooccurrence_weight:g} x {cooccurrence.encoder}"
    return Embeddings(np.concatenate(parts, axis=1), encoder=name, normalized=False)


def fill_missing(
    vectors: npt.NDArray[np.float32], known: npt.NDArray[np.float32], num_neighbours: int = 10
) -> npt.NDArray[np.float32]:
    """Vectors for items that have none, from those of the items most like them.

    So an item that nobody has taken yet stands where its text says, not in a corner of its own.

    Args:
        vectors: ``[N, D]``; rows of zeros are missing, the others have unit length.
        known: ``[N, F]``, by which items are alike (cosine).
        num_neighbours: Items whose mean direction fills a row.
    """
    missing = np.flatnonzero(~vectors.any(axis=1))
    given = np.flatnonzero(vectors.any(axis=1))
    if not len(missing) or not len(given):
        return vectors
    filled = vectors.copy()
    directions = normalize_rows(known)
    num_neighbours = min(num_neighbours, len(given))
    for start in range(0, len(missing), FILL_CHUNK):
        rows = missing[start : start + FILL_CHUNK]
        likeness = directions[rows] @ directions[given].T
        nearest = np.argpartition(-likeness, num_neighbours - 1, axis=1)[:, :num_neighbours]
        filled[rows] = normalize_rows(vectors[given[nearest]].mean(axis=1))
    return filled


def _reduce(vectors: npt.NDArray[np.float32], dim: int | None) -> npt.NDArray[np.float32]:
    if dim is None or dim >= min(vectors.shape):
        return vectors
    from sklearn.decomposition import PCA

    # Exact and deterministic: an eigendecomposition of the small [F, F] covariance.
    reduced = PCA(dim, svd_solver="covariance_eigh").fit_transform(vectors)
    return np.asarray(reduced, dtype=np.float32)


def _standardize(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    centred = vectors - vectors.mean(axis=0)
    scale = np.sqrt(np.square(centred, dtype=np.float64).sum(axis=1).mean())
    return np.asarray(centred / max(scale, 1e-12), dtype=np.float32)
