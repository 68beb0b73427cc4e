"""Item features, which the tokenizer quantizes: several kinds of vectors joined side by side.

Text is the first part. Co-occurrence in *training* sequences separates items whose texts are
similar but which appeal to different users. Further parts ("blocks") are vectors of any kind, such
as those of images. Each part is reduced to its leading principal components and scaled so that its
root mean square norm equals its weight. Parts of equal weight then count equally.

`FeatureTransform` saves what was fitted. Items added later get features of the same kind, and the
features of earlier items do not change.

Shapes: N items of the catalogue, n selected items, F dimensions of vectors, D dimensions of
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.embedding.embeddings import Embeddings, normalize_rows
from recgrit.embedding.transforms import FeatureTransform, PartTransform, Vectors

# Number of similar items whose vectors fill the row of an item without a vector.
NUM_NEIGHBOURS = 10
# Number of rows to fill at once. It limits the size of the table of similarities.
FILL_CHUNK = 256
# Maximum number of candidates to search for similar items. Of more, an evenly spaced sample is
# searched, so the time grows linearly with the catalogue.
MAX_GIVEN = 262_144

# Up to MAX_AT_ONCE vectors, the principal components are computed in one piece. Beyond that, CHUNK
# vectors are in memory at a time.
MAX_AT_ONCE = 2**21
CHUNK = 65_536


@dataclass(frozen=True)
class Block:
    """Item vectors of one further kind, such as those of images, with their settings.

    Shapes: N items of the catalogue, F dimensions of the vectors.

    Args:
        vectors: Vectors of all items, ``[N, F]``.
        given: Whether each item has a vector, bool ``[N]``. The rows of other items are ignored.
        encoder: Name of the encoder or file that the vectors come from, for people to read.
        dim: Number of principal components to keep. None keeps all dimensions.
        weight: Scale of the block relative to the text part, which has scale 1.
        missing: Vector of an item that has none: ``alike`` uses the mean of the items with the most
            similar texts, ``mean`` the mean of all items that have one.
    """

    vectors: Vectors
    given: npt.NDArray[np.bool_]
    encoder: str
    dim: int | None
    weight: float
    missing: str


@dataclass(frozen=True)
class FittedFeatures:
    """Features of all items, and the fitted transform that makes features of later items."""

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
    """Fit the transforms of all feature parts and return the features of all items.

    Each part is scaled so that its root mean square norm equals its weight. The text part has
    weight 1.

    Args:
        text: Text vectors of all items.
        cooccurrence: Co-occurrence vectors of the same items. None leaves the part out.
        blocks: Further vectors by name. The features contain them in alphabetical order of their
            names.
        text_dim: Number of principal components to keep of the text vectors. None keeps all
            dimensions. With fewer items than dimensions, at most one dimension less than there are
            items is kept.
        cooccurrence_weight: Scale of the co-occurrence part relative to the text part.
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
    """Return vectors for the items without one: ``fill``, or the mean of the most similar items."""
    if fill is not None or given.all():
        return np.broadcast_to(0 if fill is None else fill, (int((~given).sum()), vectors.shape[1]))
    alike = find_alike(text, np.flatnonzero(~given), np.flatnonzero(given), NUM_NEIGHBOURS)
    return np.asarray(vectors[alike.items].mean(axis=1), dtype=np.float32)


@dataclass(frozen=True)
class KnownItems:
    """The items that the features were fitted to, with which new items are compared.

    Shapes: N items of the catalogue, D dimensions of the features, C dimensions of the
    co-occurrence vectors.

    Args:
        features: Features of the known items, ``[N, D]``.
        cooccurrence: Co-occurrence vectors of the known items, as they were given to
            `fit_features`, ``[N, C]``, with zeros for items that have none. None if the features
            have no co-occurrence part.
        given: Whether each known item has a vector of a block, bool ``[N]``, by name of the block.
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
    """Return features ``[n, D]`` of items that are added after the fit.

    No user has interacted with new items, so they have no co-occurrence vectors. As in
    `fit_features`, each gets the co-occurrence part of the known items with the most similar texts.
    With zeros, all new items would lie in a region without known items and get that region's codes.
    Blocks that a new item lacks are filled as in `fit_features`.

    Shapes: n selected items, D dimensions of the features, F dimensions of the vectors.

    Args:
        transform: Fitted transform from `fit_features`.
        text: Text vectors of the new items, ``[n, F]``.
        known: Items that the features were fitted to.
        blocks: By name of the block, further vectors ``[n, F]`` of the new items and whether each
            item has one, bool ``[n]``. Blocks that are not given are filled for all new items.
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
        # The known features are scaled already, so the fill is scaled too.
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
    """Fill the vectors of items that have none, from the vectors of the most similar items.

    An item without interactions is then placed by its text. If more than `MAX_GIVEN` items have a
    vector, an evenly spaced sample of `MAX_GIVEN` items is searched.

    Shapes: N items of the catalogue, D dimensions of the filled vectors, F dimensions of the
    vectors that are compared.

    Args:
        vectors: Vectors ``[N, D]``. Rows of zeros are missing, and the others have unit length.
        known: Vectors ``[N, F]`` by which similarity is measured (cosine).
        num_neighbours: Number of similar items whose mean direction fills a row.
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
    """The most similar items found for each of n items.

    Shapes: k similar items per item.

    Args:
        items: Similar items in no particular order, int64 ``[n, k]``.
        cosines: Cosine similarity of each, float32 ``[n, k]``.
    """

    items: npt.NDArray[np.int64]
    cosines: Vectors


def find_alike(
    features: Vectors,
    items: npt.NDArray[np.int64],
    among: npt.NDArray[np.int64],
    num_neighbours: int,
) -> Alike:
    """Find the items among the candidates that are most similar to each of the given items.

    Of more than `MAX_GIVEN` candidates, an evenly spaced sample of `MAX_GIVEN` is searched.

    Shapes: N items of the catalogue, F dimensions of the vectors, n selected items.

    Args:
        features: Vectors ``[N, F]`` by which similarity is measured (cosine).
        items: Items to find similar items for, int64 ``[n]``.
        among: Candidate items, int64, at least one. An item that is itself a candidate can be
            found.
        num_neighbours: Number k of similar items per item. It is lower if there are fewer
            candidates.
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

    # The eigendecomposition of the small [F, F] covariance is exact and deterministic.
    pca = PCA(dim, svd_solver="covariance_eigh")
    reduced = np.asarray(pca.fit_transform(vectors), dtype=np.float32)
    return _Reduced(reduced, pca.mean_.astype(np.float32), pca.components_.astype(np.float32))


def _reduce_wide(vectors: Vectors, dim: int | None) -> _Reduced:
    """Reduce vectors to their principal components if there are fewer vectors than dimensions.

    N centred vectors span at most N - 1 dimensions. All distances are kept in these dimensions, and
    later steps do not work on dimensions in which all items are equal.
    """
    from scipy.linalg import svd

    center = vectors.mean(axis=0, dtype=np.float64)
    _, _, components = svd(vectors - center, full_matrices=False)
    span = max(1, len(vectors) - 1)
    components = _turn_positive(components[: span if dim is None else min(dim, span)])
    center, components = center.astype(np.float32), components.astype(np.float32)
    return _Reduced((vectors - center) @ components.T, center, components)


def _turn_positive(components: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Flip each component so that its largest coefficient is positive, as in scikit-learn.

    Shapes: k components, F dimensions of the vectors.

    Args:
        components: Principal components ``[k, F]``.
    """
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    turned: npt.NDArray[np.float64] = components * signs[:, None]
    return turned


def _reduce_in_chunks(vectors: Vectors, dim: int) -> _Reduced:
    """Compute the components of `_reduce` up to rounding, with one chunk of vectors in memory."""
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
