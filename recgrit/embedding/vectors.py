"""Ready-made item vectors from a file, for catalogues that already have an encoder.

Two formats: ``.npy`` with one row per item in the order of ``item_idx``, and Parquet keyed by
``item_id``. Neither runs code when read: pickled arrays are refused.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.damage import TABLE_DAMAGE, read_parquet
from recgrit.embedding.embeddings import Embeddings, has_unit_rows
from recgrit.errors import DataError

log = logging.getLogger(__name__)


def load_vectors(path: Path, item_ids: pl.Series) -> Embeddings:
    """Vectors for these items, in their order.

    Args:
        path: ``.npy`` [num_items, embedding_dim], or ``.parquet`` with ``item_id`` and either one
            list column ``vector`` or one number column per dimension.
        item_ids: External id of each item; row i belongs to ``item_idx`` i.

    Raises:
        DataError: The file is missing or malformed, lacks items, names an item twice, or holds
            values that are not finite.
    """
    if path.suffix not in (".npy", ".parquet"):
        raise DataError(f"Cannot read vectors from {path}: expected a .npy or .parquet file.")
    if not path.is_file():
        raise DataError(f"No vectors at {path}. Check embedding.vectors_path.")
    vectors = _read_npy(path) if path.suffix == ".npy" else _read_parquet(path, item_ids)
    normalized = vectors.ndim == 2 and bool(has_unit_rows(vectors).all())
    embeddings = Embeddings(vectors, f"vectors:{path.name}", normalized)
    embeddings.require_num_items(len(item_ids))
    return embeddings


def _read_npy(path: Path) -> npt.NDArray[np.float32]:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"Cannot read {path} as an array of numbers ({error}). Object arrays are refused; "
            "save a plain one with numpy.save(path, vectors.astype('float32'))."
        ) from None
    if not np.issubdtype(vectors.dtype, np.number) or np.iscomplexobj(vectors):
        raise DataError(f"{path} holds {vectors.dtype} values; expected numbers.")
    with np.errstate(over="ignore"):  # too large for float32: infinity, refused by Embeddings
        return np.asarray(vectors, dtype=np.float32)


def _read_parquet(path: Path, item_ids: pl.Series) -> npt.NDArray[np.float32]:
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
    missing = wanted.join(frame, on="item_id", how="anti", maintain_order="left")["item_id"]
    if len(missing):
        raise DataError(
            f"{path} lacks vectors for {len(missing)} of {len(item_ids)} items, the first "
            f"{missing.head(3).to_list()}."
        )
    if frame.height > len(item_ids):
        log.info("Ignored %d vectors of items not in the catalogue", frame.height - len(item_ids))
    rows = wanted.join(frame, on="item_id", how="left", maintain_order="left")
    return _to_matrix(rows.drop("item_id"), path)


def _to_matrix(frame: pl.DataFrame, path: Path) -> npt.NDArray[np.float32]:
    dtype = frame.schema.get("vector")
    if isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric():
        lists = frame["vector"].cast(pl.List(pl.Float32))
        lengths = lists.list.len().unique().sort().to_list()
        if len(lengths) != 1 or not lengths[0]:
            raise DataError(
                f"All vectors in {path} need one length and none may be null or empty, got "
                f"lengths {lengths[:5]}."
            )
        # A null within a vector becomes NaN here and is refused with its row later.
        return lists.explode().to_numpy().reshape(frame.height, lengths[0])
    others = [name for name, dtype in frame.schema.items() if not dtype.is_numeric()]
    if others or not frame.columns:
        raise DataError(
            f"{path} needs a list column 'vector' or number columns beside item_id; "
            f"not numbers: {others}."
        )
    return frame.cast(pl.Float32).to_numpy()
