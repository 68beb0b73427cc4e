"""One vector per item, in the order of ``item_idx``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from recgrit.disk import write_atomic
from recgrit.errors import ArtifactError, DataError

# Rows checked at a time, so that a memory-mapped file is never copied as a whole.
CHECK_ROWS = 65536
NORM_TOLERANCE = 1e-3
# Shorter rows are rounding residue of an item nothing is known of; scaling them up makes noise.
ZERO_NORM = 1e-6


class Encoder(Protocol):
    """Texts in, one normalized vector per text out; equal texts get equal vectors."""

    @property
    def name(self) -> str:
        """What it is called in artifacts and logs."""

    @property
    def fingerprint(self) -> str:
        """Hash of settings and weights: equal fingerprints give equal vectors."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), embedding_dim]; rows of length 1, or zeros without content."""


@dataclass(frozen=True)
class Embeddings:
    """Item vectors; row i is ``item_idx`` i.

    Args:
        vectors: float32 [num_items, embedding_dim], finite.
        encoder: What made them, for people to read.
        normalized: Whether every row has length 1 (or is all zeros: nothing known of that item).

    Raises:
        DataError: The shape or type is wrong, values are not finite, or rows that are said to be
            normalized are not.
    """

    vectors: npt.NDArray[np.float32]
    encoder: str
    normalized: bool

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or not self.vectors.shape[1]:
            raise DataError(
                "Embeddings need float32 vectors of shape [num_items, embedding_dim], got "
                f"{self.vectors.dtype} of shape {list(self.vectors.shape)}."
            )
        broken: list[int] = []
        unscaled: list[int] = []
        for start in range(0, len(self.vectors), CHECK_ROWS):
            block = self.vectors[start : start + CHECK_ROWS]
            broken.extend((start + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist())
            if self.normalized:
                unscaled.extend((start + np.flatnonzero(~has_unit_rows(block))).tolist())
        if broken:
            raise DataError(
                f"{len(broken)} of {len(self.vectors)} embeddings hold NaN or infinity, the first "
                f"at item_idx {broken[:3]}."
            )
        if unscaled:
            raise DataError(
                f"{len(unscaled)} of {len(self.vectors)} embeddings are said to be normalized but "
                f"have another length than 1, the first at item_idx {unscaled[:3]}."
            )

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.vectors)

    @property
    def embedding_dim(self) -> int:
        """Length of each vector."""
        return int(self.vectors.shape[1])

    def require_num_items(self, num_items: int) -> None:
        """Refuse vectors that belong to another catalogue.

        Raises:
            DataError: The number of rows is not ``num_items``.
        """
        if self.num_items != num_items:
            raise DataError(
                f"{self.num_items} embeddings ({self.encoder}) for {num_items} items: expected one "
                "row per item, in the order of item_idx."
            )

    def take(self, rows: npt.NDArray[np.int64]) -> Embeddings:
        """The vectors of some items, in this order."""
        return replace(self, vectors=self.vectors[rows])

    def to_polars(self) -> pl.DataFrame:
        """One row per item: ``item_idx`` and ``vector``, an array column."""
        # A plain contiguous copy: polars cannot take rows from a memory-mapped array.
        vectors = np.array(self.vectors)
        return pl.DataFrame(
            {"item_idx": np.arange(self.num_items, dtype=np.int32), "vector": vectors}
        )

    def to_pandas(self) -> pd.DataFrame:
        """`to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path, name: str = "text") -> None:
        """Write ``<name>_vectors.npy`` and ``<name>_embeddings.json``."""
        np.save(directory / f"{name}_vectors.npy", self.vectors)
        description = {"encoder": self.encoder, "normalized": self.normalized}
        write_atomic(
            directory / f"{name}_embeddings.json", json.dumps(description, indent=2) + "\n"
        )

    @classmethod
    def load(cls, directory: Path, name: str = "text") -> Embeddings:
        """Memory-map what `save` wrote.

        Raises:
            ArtifactError: There are no embeddings of this name, or they cannot be read.
            DataError: They hold values that are not finite.
        """
        try:
            description = json.loads((directory / f"{name}_embeddings.json").read_text("utf-8"))
            return cls(
                vectors=np.load(directory / f"{name}_vectors.npy", mmap_mode="r"),
                encoder=description["encoder"],
                normalized=description["normalized"],
            )
        except FileNotFoundError:
            raise ArtifactError(
                f"No {name!r} embeddings in {directory}: expected {name}_vectors.npy and "
                f"{name}_embeddings.json. Run the embed stage first."
            ) from None
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise ArtifactError(
                f"The {name!r} embeddings in {directory} are damaged ({error}). "
                "Delete the folder and run the embed stage again."
            ) from None


def normalize_rows(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows scaled to length 1; rows of (almost) no length become zeros.

    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = np.zeros(vectors.shape, np.float32)
    np.divide(vectors, norms, out=scaled, where=norms > ZERO_NORM, casting="same_kind")
    return scaled


def has_unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each row has length 1 or is all zeros, bool [num_items]."""
    norms = np.linalg.norm(vectors, axis=1)
    unit: npt.NDArray[np.bool_] = (np.abs(norms - 1) <= NORM_TOLERANCE) | (norms == 0)
    return unit
