"""Item features, which the tokenizer quantizes: several kinds of vectors side by side.

Text comes first. Co-occurrence in *training* sequences tells apart items whose texts are alike but
which appeal to different people. Further blocks are vectors of any kind, such as those of images.
Each part is reduced to its leading principal components and scaled to unit mean square norm times
its weight, so that parts of equal weight count equally.

`FeatureTransform` keeps what was fitted: later items get features of the same kind, and the
features of earlier items do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.embedding.embeddings import Embeddings, normalize_rows
from recgrit.embedding.transforms import FeatureTransform, PartTransform, Vectors

# Items whose vectors fill the row of one that has none.
NUM_NEIGHBOURS = 10
# Rows filled at once: bounds the table of likeness with all items.
FILL_CHUNK = 256
# Items among which those most like a row are sought, evenly spread where there are more: the time
# grows with the catalogue then, not with its square.
MAX_GIVEN = 262_144

# Vectors whose components are found in one piece, and how many are held at a time beyond that.
MAX_AT_ONCE = 2**21
CHUNK = 65_536


@dataclass(frozen=True)
class Block:
    """Item vectors of one more kind, such as those of images.

    Args:
        vectors: Of all items, ``[N, F]``.
        given: bool ``[N]``, which items have one; the rows of others do not matter.
        encoder: What made them, for people to read.
        dim: Principal components to keep; None for all dimensions.
        weight: Scale beside the text.
        missing: What an item without one gets: ``alike`` or ``mean``.
    """

    vectors: Vectors
    given: npt.NDArray[np.bool_]
    encoder: str
    dim: int | None
    weight: float
    missing: str


@dataclass(frozen=True)
class FittedFeatures:
    """Features of all items, and how they were made."""

    embeddings: Embeddings
    transform: FeatureTransform


def fit_features(
    text: Embeddings,
    cooccurrence: Embeddings | None,
    *,
    blocks: Mapping[str, Block] | None = None,
    text_dim: int | None = 64,
    cooccurrence_weight: float = 0.5,
) -> FittedFeatures:
    """Text, co-occurrence and further vectors side by side.

    Each part has unit mean square norm times its weight.

    Args:
        text: Text embeddings, ``[num_items, …]``.
        cooccurrence: Co-occurrence vectors of the same items, None for none.
        blocks: Further vectors by name; they stand in the order of their names.
        text_dim: Principal components to keep of the text; None for all dimensions. Of fewer items
            than dimensions, never more than they span: one less than there are items.
        cooccurrence_weight: Scale of the co-occurrence part.
    """
    reduced = _reduce(text.vectors, text_dim)
    parts, names = [_standardize(reduced, weight=1)], [text.encoder]
    text_part = parts[0].vectors
    if cooccurrence is not None:
        filled = fill_missing(cooccurrence.vectors, text_part)
        parts.append(_standardize(_Reduced(filled, None, None), weight=cooccurrence_weight))
        names.append(f"{cooccurrence_weight:g} x {cooccurrence.encoder}")
    fitted: dict[str, PartTransform] = {}
    for name, block in sorted((blocks or {}).items()):
        parts.append(_fit_block(block, text_part))
        names.append(f"{block.weight:g} x {block.encoder}")
        fitted[name] = parts[-1].transform
    return FittedFeatures(
        Embeddings(
            np.concatenate([part.vectors for part in parts], axis=1),
            encoder=" + ".join(names),
            normalized=False,
        ),
        FeatureTransform(
            text=parts[0].transform,
            cooccurrence=None if cooccurrence is None else parts[1].transform,
            blocks=fitted,
        ),
    )


def _fit_block(block: Block, text: Vectors) -> _Part:
    reduced = _reduce(block.vectors[block.given], block.dim)
    fill = reduced.vectors.mean(axis=0) if block.missing == "mean" else None
    vectors = np.zeros((len(block.given), reduced.vectors.shape[1]), np.float32)
    vectors[block.given] = reduced.vectors
    vectors[~block.given] = _fill(fill, text, block.given, vectors)
    return _standardize(
        _Reduced(vectors, reduced.center, reduced.components), weight=block.weight, fill=fill
    )


def _fill(
    fill: Vectors | None, text: Vectors, given: npt.NDArray[np.bool_], vectors: Vectors
) -> Vectors:
    """Vectors of the items that have none: one for all, or the mean of the items most like each."""
    if fill is not None or given.all():
        return np.broadcast_to(0 if fill is None else fill, (int((~given).sum()), vectors.shape[1]))
    alike = find_alike(text, np.flatnonzero(~given), np.flatnonzero(given), NUM_NEIGHBOURS)
    return np.asarray(vectors[alike.items].mean(axis=1), dtype=np.float32)


@dataclass(frozen=True)
class KnownItems:
    """What new items are compared with.

    Args:
        features: Of the known items, ``[N, D]``.
        cooccurrence: Their co-occurrence vectors ``[N, C]`` as they were before the fit, zeros
            where there are none; None where the features have no such part.
        given: bool ``[N]`` by block: which of them have a vector of that kind.
    """

    features: Vectors
    cooccurrence: Vectors | None
    given: Mapping[str, npt.NDArray[np.bool_]]


def build_new_features(
    transform: FeatureTransform,
    text: Vectors,
    *,
    known: KnownItems,
    blocks: Mapping[str, tuple[Vectors, npt.NDArray[np.bool_]]] | None = None,
) -> Vectors:
    """Features ``[n, D]`` of items that come after the fit.

    Nobody has interacted with them yet. Their co-occurrence part is what `fit_features` gives to
    such items too: that of the known items most like them. Zeros would put all of them in a corner
    of their own, where no known item stands, and give them codes of that corner. The same holds
    for the blocks that they come without.

    Args:
        transform: From `fit_features`.
        text: Text embeddings of the new items, ``[n, …]``.
        known: The items that the features were fitted to.
        blocks: Further vectors ``[n, …]`` of the new items by name, and which of them have one,
            bool ``[n]``; the other blocks are filled.
    """
    columns = transform.columns()
    known_text = known.features[:, columns["text"]]
    new_text = transform.text.scale_reduced(transform.text.reduce(text))
    parts = [new_text]
    if transform.cooccurrence is not None:
        assert known.cooccurrence is not None
        given = known.cooccurrence.any(axis=1)
        missing = np.zeros((len(text), known.cooccurrence.shape[1]), np.float32)
        filled = fill_missing(
            np.concatenate([known.cooccurrence[given], missing]),
            np.concatenate([known_text[given], new_text]),
        )
        parts.append(transform.cooccurrence.scale_reduced(filled[len(filled) - len(text) :]))
    for name, part in transform.blocks.items():
        new = np.zeros((len(text), part.dim), np.float32)
        has_own = np.zeros(len(text), bool)
        if blocks is not None and name in blocks:
            vectors, has_own = blocks[name]
            new[has_own] = part.scale_reduced(part.reduce(vectors[has_own]))
        given = known.given[name]
        # Of features, which are scaled already: so is the fill.
        filled = _fill(
            None if part.fill is None else part.scale_reduced(part.fill),
            np.concatenate([known_text[given], new_text[~has_own]]),
            np.arange(int(given.sum()) + int((~has_own).sum())) < given.sum(),
            np.concatenate([known.features[given][:, columns[name]], new[~has_own]]),
        )
        new[~has_own] = filled
        parts.append(new)
    return np.concatenate(parts, axis=1)


def fill_missing(vectors: Vectors, known: Vectors, num_neighbours: int = NUM_NEIGHBOURS) -> Vectors:
    """Vectors for items that have none, from those of the items most like them.

    So an item without interactions stands where its text says, not in a corner of its own.
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
    if len(vectors) < vectors.shape[1]:
        return _reduce_wide(vectors, dim)
    if dim is None or dim >= vectors.shape[1]:
        return _Reduced(vectors, None, None)
    if len(vectors) > MAX_AT_ONCE:
        return _reduce_in_chunks(vectors, dim)
    from sklearn.decomposition import PCA

    # Exact and deterministic: an eigendecomposition of the small [F, F] covariance.
    pca = PCA(dim, svd_solver="covariance_eigh")
    reduced = np.asarray(pca.fit_transform(vectors), dtype=np.float32)
    return _Reduced(reduced, pca.mean_.astype(np.float32), pca.components_.astype(np.float32))


def _reduce_wide(vectors: Vectors, dim: int | None) -> _Reduced:
    """Components of fewer vectors than they have dimensions.

    N centred vectors span N - 1 dimensions at most. All distances stay as they are in these, and
    nothing afterwards works on dimensions in which no item differs from another.
    """
    from scipy.linalg import svd

    center = vectors.mean(axis=0, dtype=np.float64)
    _, _, components = svd(vectors - center, full_matrices=False)
    span = max(1, len(vectors) - 1)
    components = _turn_positive(components[: span if dim is None else min(dim, span)])
    center, components = center.astype(np.float32), components.astype(np.float32)
    return _Reduced((vectors - center) @ components.T, center, components)


def _turn_positive(components: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Components ``[k, F]``, the largest coefficient of each positive, as scikit-learn has them."""
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    turned: npt.NDArray[np.float64] = components * signs[:, None]
    return turned


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
    center, components = (mean.astype(np.float32), _turn_positive(found.T[::-1]).astype(np.float32))
    reduced = np.empty((len(vectors), dim), np.float32)
    for number, chunk in enumerate(chunks):
        reduced[number * CHUNK : number * CHUNK + len(chunk)] = (chunk - center) @ components.T
    return _Reduced(reduced, center, components)


@dataclass(frozen=True)
class _Part:
    vectors: Vectors
    transform: PartTransform


def _standardize(reduced: _Reduced, *, weight: float, fill: Vectors | None = None) -> _Part:
    mean = reduced.vectors.mean(axis=0)
    centred = reduced.vectors - mean
    scale = max(np.sqrt(np.square(centred, dtype=np.float64).sum(axis=1).mean()), 1e-12)
    transform = PartTransform(reduced.center, reduced.components, mean, float(scale) / weight, fill)
    scaled = np.asarray(centred / scale, dtype=np.float32) * np.float32(weight)
    return _Part(scaled, transform)
