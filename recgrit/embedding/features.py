"""What the tokenizer quantizes: the text of an item and, beside it, who it is taken with.

Two items with like texts may appeal to different people. Co-occurrence in *training* sequences
tells them apart; quantized together with the text it makes semantic IDs collaborative. Each part is
reduced to its leading principal components and scaled to unit mean square norm, so that a weight
of 1 gives both an equal say.

What was fitted on the way is kept (`FeatureTransform`): items that come later get features of the
same kind, and those of earlier items do not move.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recgrit.embedding.embeddings import Embeddings, normalize_rows

# Rows filled at once: bounds the table of likeness with all items.
FILL_CHUNK = 256
# Items among which those most like a row are sought, evenly spread where there are more: the time
# grows with the catalogue then, not with its square.
MAX_GIVEN = 262_144

# Vectors whose components are found in one piece, and how many are held at a time beyond that.
MAX_AT_ONCE = 2**21
CHUNK = 65_536

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTransform:
    """How features were made of vectors, to be repeated on other items.

    Args:
        text_center: float32 ``[F]``, taken off before components; None without components.
        text_components: float32 ``[k, F]``, principal components of the text; None for all
            dimensions as they are.
        text_mean: float32 ``[k]`` or ``[F]``, of the reduced text.
        text_scale: What it is divided by.
        cooccurrence_mean: float32 ``[C]``; None where there is no co-occurrence part.
        cooccurrence_scale: Likewise, its weight included.
    """

    text_center: Vectors | None
    text_components: Vectors | None
    text_mean: Vectors
    text_scale: float
    cooccurrence_mean: Vectors | None
    cooccurrence_scale: float

    def reduce_text(self, vectors: Vectors) -> Vectors:
        """The text part of the features, of text embeddings ``[n, F]``."""
        if self.text_components is not None and self.text_center is not None:
            centred = (vectors - self.text_center).astype(np.float32)
            vectors = np.asarray(centred @ self.text_components.T, dtype=np.float32)
        return np.asarray((vectors - self.text_mean) / self.text_scale, dtype=np.float32)

    def scale_cooccurrence(self, vectors: Vectors) -> Vectors:
        """The co-occurrence part of the features, of filled vectors ``[n, C]``."""
        assert self.cooccurrence_mean is not None
        centred = vectors - self.cooccurrence_mean
        return np.asarray(centred / self.cooccurrence_scale, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        from safetensors.numpy import save_file

        arrays = {
            "text_center": self.text_center,
            "text_components": self.text_components,
            "text_mean": self.text_mean,
            "text_scale": np.array(self.text_scale, np.float64),
            "cooccurrence_mean": self.cooccurrence_mean,
            "cooccurrence_scale": np.array(self.cooccurrence_scale, np.float64),
        }
        save_file(
            {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}, path
        )

    @classmethod
    def load(cls, path: Path) -> FeatureTransform:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(path)
        return cls(
            text_center=arrays.get("text_center"),
            text_components=arrays.get("text_components"),
            text_mean=arrays["text_mean"],
            text_scale=float(arrays["text_scale"].item()),
            cooccurrence_mean=arrays.get("cooccurrence_mean"),
            cooccurrence_scale=float(arrays["cooccurrence_scale"].item()),
        )


@dataclass(frozen=True)
class FittedFeatures:
    """Features of all items, and how they were made."""

    embeddings: Embeddings
    transform: FeatureTransform


def fit_features(
    text: Embeddings,
    cooccurrence: Embeddings | None,
    *,
    text_dim: int | None = 64,
    cooccurrence_weight: float = 0.5,
) -> FittedFeatures:
    """Text and co-occurrence vectors side by side, each of unit mean square norm times its weight.

    Args:
        text: Text embeddings, ``[num_items, …]``.
        cooccurrence: Co-occurrence vectors of the same items, None for text alone.
        text_dim: Principal components to keep of the text; None for all dimensions.
        cooccurrence_weight: Scale of the co-occurrence part.
    """
    reduced = _reduce(text.vectors, text_dim)
    standard = _standardize(reduced.vectors)
    parts, name = [standard.vectors], text.encoder
    taken = None
    if cooccurrence is not None:
        filled = fill_missing(cooccurrence.vectors, parts[0])
        taken = _standardize(filled)
        parts.append(taken.vectors * np.float32(cooccurrence_weight))
        name = f"{name} + {cooccurrence_weight:g} x {cooccurrence.encoder}"
    return FittedFeatures(
        Embeddings(np.concatenate(parts, axis=1), encoder=name, normalized=False),
        FeatureTransform(
            text_center=reduced.center,
            text_components=reduced.components,
            text_mean=standard.mean,
            text_scale=standard.scale,
            cooccurrence_mean=None if taken is None else taken.mean,
            cooccurrence_scale=1.0 if taken is None else taken.scale / cooccurrence_weight,
        ),
    )


def build_new_features(
    transform: FeatureTransform,
    text: Vectors,
    *,
    known_text: Vectors,
    known_cooccurrence: Vectors | None,
) -> Vectors:
    """Features ``[n, F]`` of items that come after the fit.

    Nobody has taken them yet. Their co-occurrence part is what `fit_features` gives to such items
    too: that of the known items most like them. Zeros would put all of them in a corner of their
    own, where no item that anybody took stands, and give them codes of that corner.

    Args:
        transform: From `fit_features`.
        text: Text embeddings of the new items, ``[n, …]``.
        known_text: The text part of the features of known items, ``[N, k]``.
        known_cooccurrence: Their co-occurrence vectors ``[N, C]`` as they were before the fit,
            zeros where there are none; None where the features have no such part.
    """
    reduced = transform.reduce_text(text)
    if known_cooccurrence is None:
        return reduced
    given = known_cooccurrence.any(axis=1)
    missing = np.zeros((len(text), known_cooccurrence.shape[1]), np.float32)
    filled = fill_missing(
        np.concatenate([known_cooccurrence[given], missing]),
        np.concatenate([known_text[given], reduced]),
    )
    new = filled[len(filled) - len(text) :]
    return np.concatenate([reduced, transform.scale_cooccurrence(new)], axis=1)


def fill_missing(vectors: Vectors, known: Vectors, num_neighbours: int = 10) -> Vectors:
    """Vectors for items that have none, from those of the items most like them.

    So an item that nobody has taken yet stands where its text says, not in a corner of its own.
    Of more than `MAX_GIVEN` items that have one, as many are asked.

    Args:
        vectors: ``[N, D]``; rows of zeros are missing, the others have unit length.
        known: ``[N, F]``, by which items are alike (cosine).
        num_neighbours: Items whose mean direction fills a row.
    """
    is_given = vectors.any(axis=1)
    missing, given = np.flatnonzero(~is_given), np.flatnonzero(is_given)
    if not len(missing) or not len(given):
        return vectors
    filled = vectors.copy()
    alike = find_alike(known, missing, given, num_neighbours)
    filled[missing] = normalize_rows(vectors[alike.items].mean(axis=1))
    return filled


@dataclass(frozen=True)
class Alike:
    """The items most like some others, in no order, int64 ``[n, k]``, and cosines ``[n, k]``."""

    items: npt.NDArray[np.int64]
    cosines: Vectors


def find_alike(
    features: Vectors,
    items: npt.NDArray[np.int64],
    among: npt.NDArray[np.int64],
    num_neighbours: int,
) -> Alike:
    """The items most like these, among others: of more than `MAX_GIVEN` as many are asked.

    Args:
        features: ``[N, F]``, by which items are alike (cosine).
        items: int64 ``[n]``.
        among: int64, not empty.
        num_neighbours: k, or less where there are fewer.
    """
    if len(among) > MAX_GIVEN:
        among = among[np.arange(MAX_GIVEN) * len(among) // MAX_GIVEN]
    directions = normalize_rows(features[among]).T
    num_neighbours = min(num_neighbours, len(among))
    found = np.empty((len(items), num_neighbours), np.int64)
    cosines = np.empty(found.shape, np.float32)
    for start in range(0, len(items), FILL_CHUNK):
        chunk = slice(start, start + FILL_CHUNK)
        likeness = normalize_rows(features[items[chunk]]) @ directions
        nearest = np.argpartition(-likeness, num_neighbours - 1, axis=1)[:, :num_neighbours]
        found[chunk] = among[nearest]
        cosines[chunk] = np.take_along_axis(likeness, nearest, axis=1)
    return Alike(found, cosines)


@dataclass(frozen=True)
class _Reduced:
    vectors: Vectors
    center: Vectors | None
    components: Vectors | None


def _reduce(vectors: Vectors, dim: int | None) -> _Reduced:
    if dim is None or dim >= min(vectors.shape):
        return _Reduced(vectors, None, None)
    if len(vectors) > MAX_AT_ONCE:
        return _reduce_in_chunks(vectors, dim)
    from sklearn.decomposition import PCA

    # Exact and deterministic: an eigendecomposition of the small [F, F] covariance.
    pca = PCA(dim, svd_solver="covariance_eigh")
    reduced = np.asarray(pca.fit_transform(vectors), dtype=np.float32)
    return _Reduced(reduced, pca.mean_.astype(np.float32), pca.components_.astype(np.float32))


def _reduce_in_chunks(vectors: Vectors, dim: int) -> _Reduced:
    """The same components up to rounding, with one chunk of vectors in memory."""
    from scipy.linalg import eigh

    size = vectors.shape[1]
    total, products = np.zeros(size), np.zeros((size, size))
    chunks = [vectors[start : start + CHUNK] for start in range(0, len(vectors), CHUNK)]
    for chunk in chunks:
        total += chunk.sum(axis=0, dtype=np.float64)
    mean = total / len(vectors)
    for chunk in chunks:
        centred = chunk - mean
        products += centred.T @ centred
    _, found = eigh(products, subset_by_index=(size - dim, size - 1))
    components = found.T[::-1]
    # As scikit-learn has them: the largest coefficient is positive.
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(dim), largest])
    center, components = mean.astype(np.float32), (components * signs[:, None]).astype(np.float32)
    reduced = np.empty((len(vectors), dim), np.float32)
    for number, chunk in enumerate(chunks):
        reduced[number * CHUNK : number * CHUNK + len(chunk)] = (chunk - center) @ components.T
    return _Reduced(reduced, center, components)


@dataclass(frozen=True)
class _Standard:
    vectors: Vectors
    mean: Vectors
    scale: float


def _standardize(vectors: Vectors) -> _Standard:
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    scale = max(np.sqrt(np.square(centred, dtype=np.float64).sum(axis=1).mean()), 1e-12)
    return _Standard(np.asarray(centred / scale, dtype=np.float32), mean, float(scale))
