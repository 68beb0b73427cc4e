"""Item vectors (`Embeddings`), one row per item in the order of ``item_idx``, and text encoders."""

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

# Number of rows to check at a time, so that a memory-mapped file is never copied as a whole.
CHECK_ROWS = 65536
NORM_TOLERANCE = 1e-3
# Length up to which a row counts as zero. Such rows are rounding residue of items of which nothing
# is known, and scaling them up would turn the residue into noise.
ZERO_NORM = 1e-6


class Encoder(Protocol):
    """A text encoder that returns one normalized vector per text. Equal texts get equal vectors."""

    @property
    def name(self) -> str:
        """Name of the encoder in artifacts and logs."""

    @property
    def fingerprint(self) -> str:
        """Hash of settings and weights. Encoders with equal fingerprints return equal vectors."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts as vectors.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1, or zeros for a text
            without content.
        """


@dataclass(frozen=True)
class Embeddings:
    """Vectors of all items, in which row i belongs to ``item_idx`` i.

    Args:
        vectors: float32 ``[num_items, embedding_dim]``, finite.
        encoder: Name of the encoder or file that the vectors come from, for people to read.
        normalized: Whether every row has length 1, or is all zeros because nothing is known of the
            item.

    Raises:
        DataError: The shape or type is wrong, a value is not finite, or ``normalized`` is set and a
            row has another length.
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
                f"{len(unscaled)} of {len(self.vectors)} embeddings are declared as normalized but "
                f"do not have length 1, the first at item_idx {unscaled[:3]}."
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
        """Raise an error unless there is one vector for each item of a catalogue.

        Args:
            num_items: Number of items in the catalogue.

        Raises:
            DataError: The number of rows is not ``num_items``.
        """
        if self.num_items != num_items:
            raise DataError(
                f"{self.num_items} embeddings ({self.encoder}) for {num_items} items: expected one "
                "row per item, in the order of item_idx."
            )

    def take(self, rows: npt.NDArray[np.int64]) -> Embeddings:
        """Return the vectors of the given rows, in the given order."""
        return replace(self, vectors=self.vectors[rows])

    def to_polars(self) -> pl.DataFrame:
        """Return a data frame with ``item_idx`` and ``vector`` (an array), one row per item."""
        # polars cannot read rows from a memory-mapped array, so it gets a plain contiguous copy.
        vectors = np.array(self.vectors)
        return pl.DataFrame(
            {"item_idx": np.arange(self.num_items, dtype=np.int32), "vector": vectors}
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the frame of `to_polars` as a pandas data frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path, name: str = "text") -> None:
        """Write ``<name>_vectors.npy`` and ``<name>_embeddings.json`` into a folder."""
        np.save(directory / f"{name}_vectors.npy", self.vectors)
        description = {"encoder": self.encoder, "normalized": self.normalized}
        write_atomic(
            directory / f"{name}_embeddings.json", json.dumps(description, indent=2) + "\n"
        )

    @classmethod
    def load(cls, directory: Path, name: str = "text") -> Embeddings:
        """Memory-map embeddings that `save` wrote.

        Raises:
            ArtifactError: There are no embeddings of this name, or they cannot be read.
            DataError: A value is not finite, or a row recorded as normalized has another length
                than 1.
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
    """Return the rows scaled to length 1; rows of almost zero length become zeros.

    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = np.zeros(vectors.shape, np.float32)
    np.divide(vectors, norms, out=scaled, where=norms > ZERO_NORM, casting="same_kind")
    return scaled


def has_unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return for each row whether it has length 1 or is all zeros, as bool ``[num_items]``."""
    norms = np.linalg.norm(vectors, axis=1)
    unit: npt.NDArray[np.bool_] = (np.abs(norms - 1) <= NORM_TOLERANCE) | (norms == 0)
    return unit
