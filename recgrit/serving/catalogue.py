"""Which items of a bundle are trained, were added, or were removed."""

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
    """What became of each item; row i is ``item_idx`` i.

    Args:
        trained: bool ``[N]``, whether training histories hold it.
        added_in: int32 ``[N]``, number of the bundle that added it, 0 for the first.
        removed_in: int32 ``[N]``, likewise; -1 while it is listed. A removed item keeps its row and
            its ID, so that nothing else ever gets them.
        counts: int64 ``[N]``, how often each stands in training; 0 for what was added later.
    """

    trained: npt.NDArray[np.bool_]
    added_in: npt.NDArray[np.int32]
    removed_in: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]

    @property
    def listed(self) -> npt.NDArray[np.bool_]:
        """Bool ``[N]``, the items that may be recommended."""
        return self.removed_in < 0

    def save(self, directory: Path, item_ids: pl.Series) -> None:
        """Write ``catalogue.parquet``."""
        columns = {"trained": self.trained, "added_in": self.added_in}
        columns |= {"removed_in": self.removed_in, "count": self.counts}
        frame = pl.DataFrame({"item_id": item_ids, **columns})
        frame.write_parquet(directory / CATALOGUE_NAME)

    @classmethod
    def load(cls, directory: Path, item_ids: pl.Series) -> Catalogue:
        """Read what `save` wrote.

        Raises:
            ArtifactError: It is not of these items, or says of one what cannot be.
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
