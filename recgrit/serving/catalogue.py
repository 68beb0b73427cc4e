"""The catalogue of a bundle: which items are trained, added or removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.errors import ArtifactError

CATALOGUE_NAME = "catalogue.parquet"


@dataclass(frozen=True)
class Catalogue:
    """The state of each item in a bundle. Row i describes ``item_idx`` i; there are N items.

    Args:
        trained: bool ``[N]``. Whether the item occurs in a training history.
        added_in: int32 ``[N]``. Number of the bundle that added the item. The first bundle is 0.
        removed_in: int32 ``[N]``. Number of the bundle that removed the item, or -1 if the item is
            listed. A removed item keeps its row and its ID, so that no other item ever gets them.
        counts: int64 ``[N]``. Number of training interactions of the item, 0 for items that were
            added later. If events have types, only the types that are predicted count.
    """

    trained: npt.NDArray[np.bool_]
    added_in: npt.NDArray[np.int32]
    removed_in: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]

    @property
    def listed(self) -> npt.NDArray[np.bool_]:
        """The items that may be recommended, bool ``[N]``."""
        return self.removed_in < 0

    def save(self, directory: Path, item_ids: pl.Series) -> None:
        """Write ``catalogue.parquet`` into a folder."""
        columns = {"trained": self.trained, "added_in": self.added_in}
        columns |= {"removed_in": self.removed_in, "count": self.counts}
        frame = pl.DataFrame({"item_id": item_ids, **columns})
        frame.write_parquet(directory / CATALOGUE_NAME)

    @classmethod
    def load(cls, directory: Path, item_ids: pl.Series) -> Catalogue:
        """Read the file that `save` wrote.

        Raises:
            ArtifactError: The file lists other items than ``item_ids``, or has impossible values.
        """
        frame = pl.read_parquet(directory / CATALOGUE_NAME, glob=False)
        types = {"item_id": pl.String, "trained": pl.Boolean, "added_in": pl.Int32}
        expected = pl.Schema(types | {"removed_in": pl.Int32, "count": pl.Int64})
        if frame.schema != expected or any(frame.null_count().row(0)):
            raise ArtifactError(f"{CATALOGUE_NAME} needs {expected} without nulls.")
        if not frame["item_id"].equals(item_ids):
            raise ArtifactError(f"{CATALOGUE_NAME} lists other items than the item table.")
        if (frame["added_in"] < 0).any() or (frame["removed_in"] < -1).any():
            raise ArtifactError(f"{CATALOGUE_NAME} has negative numbers of bundles.")
        if (frame["count"] < 0).any():
            raise ArtifactError(f"{CATALOGUE_NAME} has negative counts.")
        return cls(
            trained=frame["trained"].to_numpy(),
            added_in=frame["added_in"].to_numpy(),
            removed_in=frame["removed_in"].to_numpy(),
            counts=frame["count"].to_numpy(writable=True),
        )
