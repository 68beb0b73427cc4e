"""Readers of ready-made item vectors, for catalogues that already have an encoder.

Three formats are read: ``.npy`` with one row per item in the order of ``item_idx``, Parquet keyed
by ``item_id``, and a published table of codes (``NAME.index.json``), whose codes become one-hot
vectors. Reading never runs code from a file: pickled arrays are refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.damage import TABLE_DAMAGE, read_parquet
from recgrit.embedding.embeddings import Embeddings, has_unit_rows
from recgrit.errors import DataError
from recgrit.semantic_ids.published import find_published_ids

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SomeVectors:
    """Vectors of the items that have one.

    Args:
        vectors: float32 ``[N, F]`` for N items and F dimensions. Items without a vector have zeros.
        given: Whether each item has a vector, bool ``[N]``.
        encoder: Name of the encoder or file that the vectors come from, for people to read.
    """

    vectors: npt.NDArray[np.float32]
    given: npt.NDArray[np.bool_]
    encoder: str


def load_vectors(path: Path, item_ids: pl.Series) -> Embeddings:
    """Read one vector for each of the given items, in their order.

    Args:
        path: File to read: ``.npy`` of shape ``[num_items, embedding_dim]``, ``.parquet`` with
            ``item_id`` and either one list column ``vector`` or one number column per dimension, or
            ``NAME.index.json``.
        item_ids: External id of each item. Row i belongs to ``item_idx`` i.

    Raises:
        DataError: The file is missing or malformed, lacks a vector for an item, names an item
            twice, or holds values that are not finite.
    """
    found = _read(path, item_ids)
    lacking = item_ids.filter(pl.Series(found.rows < 0))
    if len(lacking):
        raise DataError(
            f"{path} lacks vectors for {len(lacking)} of {len(item_ids)} items, the first "
            f"{lacking.head(3).to_list()}. Add them to the file."
        )
    vectors = found.vectors[found.rows]
    normalized = vectors.ndim == 2 and bool(has_unit_rows(vectors).all())
    return Embeddings(vectors, f"vectors:{path.name}", normalized)


def load_some_vectors(path: Path, item_ids: pl.Series) -> SomeVectors:
    """Read vectors of the given items that have one; a row of zeros counts as missing.

    Args:
        path: File to read, in a format of `load_vectors`.
        item_ids: External id of each item. Row i belongs to ``item_idx`` i.

    Raises:
        DataError: No item has a vector, the file is missing or malformed, names an item twice, or
            holds values that are not finite.
    """
    found = _read(path, item_ids)
    given = found.rows >= 0
    vectors = np.zeros((len(item_ids), found.vectors.shape[1]), np.float32)
    vectors[given] = found.vectors[found.rows[given]]
    Embeddings(vectors, path.name, normalized=False)  # Raises DataError if a value is not finite.
    given &= vectors.any(axis=1)
    if not given.any():
        raise _meets_none(path, item_ids)
    return SomeVectors(vectors, given, f"vectors:{path.name}")


@dataclass(frozen=True)
class _Found:
    """Vectors of a file, and the row of each requested item in them.

    Shapes: n vectors in the file, F dimensions.

    Args:
        vectors: float32 ``[n, F]``.
        rows: int64 ``[number of items]``, -1 for an item without a vector.
    """

    vectors: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]


def _read(path: Path, item_ids: pl.Series) -> _Found:
    readers = {".npy": _read_npy, ".parquet": _read_parquet, ".json": _read_codes}
    if path.suffix not in readers:
        raise DataError(
            f"Cannot read vectors from {path}: expected a .npy, .parquet or .index.json file."
        )
    if not path.is_file():
        raise DataError(f"No vectors at {path}. Check the path.")
    return readers[path.suffix](path, item_ids)


def _meets_none(path: Path, item_ids: pl.Series) -> DataError:
    return DataError(
        f"{path} has no vector for any of the {len(item_ids)} items, such as "
        f"{item_ids.head(3).to_list()}. Check that it uses the item ids of the interactions."
    )


def _read_codes(path: Path, item_ids: pl.Series) -> _Found:
    """Return one-hot vectors of published codes, with one dimension for each code of each level."""
    found = find_published_ids(path, item_ids)
    starts = np.cumsum((0, *found.codebook_sizes[:-1]))
    vectors = np.zeros((len(found.codes), sum(found.codebook_sizes)), np.float32)
    np.put_along_axis(vectors, found.codes + starts, 1, axis=1)
    return _Found(vectors, found.rows)


def _read_npy(path: Path, item_ids: pl.Series) -> _Found:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"Cannot read {path} as an array of numbers ({error}). Object arrays are refused; "
            "save a plain one with numpy.save(path, vectors.astype('float32'))."
        ) from None
    if not np.issubdtype(vectors.dtype, np.number) or np.iscomplexobj(vectors):
        raise DataError(f"{path} holds {vectors.dtype} values; expected numbers.")
    with np.errstate(over="ignore"):  # Too large numbers become infinity, which Embeddings refuses.
        rows = np.asarray(vectors, dtype=np.float32)
    Embeddings(rows, f"vectors:{path.name}", normalized=False).require_num_items(len(item_ids))
    return _Found(rows, np.arange(len(rows)))


def _read_parquet(path: Path, item_ids: pl.Series) -> _Found:
    try:
        frame = read_parquet(path)
    except TABLE_DAMAGE as error:
        raise DataError(f"Cannot read {path} as Parquet: {error}") from None
    if "item_id" not in frame.columns:
        raise DataError(f"{path} needs a column 'item_id', got {frame.columns}.")
    frame = frame.with_columns(pl.col("item_id").cast(pl.String))
    repeated = frame.filter(pl.col("item_id").is_duplicated())["item_id"].unique(
        maintain_order=True
    )
    if len(repeated):
        raise DataError(
            f"{path} names {len(repeated)} items more than once, the first "
            f"{repeated.head(3).to_list()}."
        )
    wanted = item_ids.alias("item_id").to_frame()
    known = frame.join(wanted, on="item_id", how="semi", maintain_order="left")
    if "vector" in known.columns:
        known = known.filter(pl.col("vector").is_not_null())
    if not known.height:
        raise _meets_none(path, item_ids)
    if known.height < frame.height:
        log.info("Ignored %d rows that have another item or no vector", frame.height - known.height)
    places = known.select("item_id", row=pl.int_range(pl.len(), dtype=pl.Int64))
    rows = wanted.join(places, on="item_id", how="left", maintain_order="left")["row"]
    return _Found(_to_matrix(known.drop("item_id"), path), rows.fill_null(-1).to_numpy())


def _to_matrix(frame: pl.DataFrame, path: Path) -> npt.NDArray[np.float32]:
    dtype = frame.schema.get("vector")
    if isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric():
        lists = frame["vector"].cast(pl.List(pl.Float32))
        lengths = lists.list.len().unique().sort().to_list()
        if len(lengths) != 1 or not lengths[0]:
            raise DataError(
                f"All vectors in {path} must have the same length, and none may be null or empty; "
                f"got lengths {lengths[:5]}."
            )
        # A null within a vector becomes NaN here. Embeddings refuses it later and names its row.
        return lists.explode().to_numpy().reshape(frame.height, lengths[0])
    others = [name for name, dtype in frame.schema.items() if not dtype.is_numeric()]
    if others or not frame.columns:
        raise DataError(
            f"{path} needs a list column 'vector' or number columns beside item_id; "
            f"not numbers: {others}."
        )
    return frame.cast(pl.Float32).to_numpy()
