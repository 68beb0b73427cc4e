"""The difference between a bundle and the previous one: changed items, and the quality of the IDs.

A feature store loads the changed items and not the whole table. The quality shows when the
tokenizer, which stays as it was fitted, no longer fits the catalogue: collisions increase, and IDs
keep fewer nearest neighbours.

Shapes: N items, F features, L levels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recgrit.quantization.autoencoder import Tokenizer
from recgrit.quantization.diagnostics import IdDiagnostics, diagnose_codes
from recgrit.quantization.fidelity import measure_fidelity, spread_rows
from recgrit.semantic_ids.table import SemanticIdTable

DELTA_FOLDER = "delta"
ITEMS_NAME = "items.parquet"
QUALITY_NAME = "quality.json"


@dataclass(frozen=True)
class Delta:
    """The difference between a bundle and the previous one.

    Args:
        items: One row per changed item, with columns item_id, change (``added``, ``removed`` or
            ``changed``), title, level_0 …, semantic_id. Added items come first, then removed items,
            then items with another title, each in the order of the ID table.
        before: Diagnostics of the IDs of the items that the previous bundle lists.
        after: Diagnostics of the IDs of the items that the new bundle lists.
    """

    items: pl.DataFrame
    before: IdDiagnostics
    after: IdDiagnostics

    def describe(self) -> str:
        """Return the quality of the IDs before and after as one line of text."""
        parts = [
            _compare("shared IDs", self.before.collision_rate, self.after.collision_rate),
            _compare("codes in use", _usage(self.before), _usage(self.after)),
        ]
        kept = [found.levels[-1].neighbours_kept for found in (self.before, self.after)]
        if not np.isnan(kept).any():
            parts.append(_compare("neighbours kept", *kept))
        return f"IDs before and after: {', '.join(parts)}"

    def save(self, directory: Path) -> None:
        """Write ``delta/items.parquet`` and ``delta/quality.json`` into a bundle's folder."""
        folder = directory / DELTA_FOLDER
        folder.mkdir()
        self.items.write_parquet(folder / ITEMS_NAME)
        report = {"before": _to_json(self.before), "after": _to_json(self.after)}
        text = json.dumps(report, indent=2, allow_nan=False)
        (folder / QUALITY_NAME).write_text(text + "\n", encoding="utf-8")


def find_delta(
    table: SemanticIdTable, rows_by_change: Mapping[str, npt.NDArray[np.int64]]
) -> pl.DataFrame:
    """Return the rows of the ID table that changed, with a column that names the change.

    Args:
        table: ID table of the new bundle.
        rows_by_change: Row numbers of the changed items by change: ``added``, ``removed`` or
            ``changed``.
    """
    frame = table.to_polars()
    names = ["item_id", "change", "title", *frame.columns[2:]]
    parts = [
        frame[rows].with_columns(pl.lit(change).alias("change")).select(names)
        for change, rows in rows_by_change.items()
    ]
    return pl.concat(parts)


@torch.inference_mode()
def measure_ids(
    table: SemanticIdTable,
    features: npt.NDArray[np.float32],
    tokenizer: Tokenizer,
    listed: npt.NDArray[np.bool_],
) -> IdDiagnostics:
    """Measure the distribution of the listed items' IDs, and how many nearest neighbours they keep.

    The disambiguation level is left out, because it only separates items whose other codes are
    equal. Such items therefore count as a collision.

    Args:
        table: ID table of all items.
        features: Features of all items, float32 ``[N, F]``.
        tokenizer: The tokenizer that gave the items their codes.
        listed: Items to measure, bool ``[N]``.
    """
    rows = np.flatnonzero(listed)
    levels = [level for level in range(table.id_length) if level != table.disambiguation_level]
    codes = table.codes[rows][:, levels].astype(np.int64)
    sizes = tuple(table.codebook_sizes[level] for level in levels)
    some = spread_rows(len(rows))
    latents = tokenizer.encode_latent(torch.from_numpy(features[rows[some]]))
    kept = measure_fidelity(latents, torch.from_numpy(codes[some]), tokenizer.quantizer.decode)
    return diagnose_codes(codes, sizes, neighbours_kept=kept)


def _usage(found: IdDiagnostics) -> float:
    """Return the share of the codes of all levels that at least one item has."""
    used = sum(level.codebook_size - level.dead_codes for level in found.levels)
    return used / sum(level.codebook_size for level in found.levels)


def _compare(what: str, before: float, after: float) -> str:
    return f"{what} {before:.1%} and {after:.1%}"


def _to_json(found: IdDiagnostics) -> dict[str, Any]:
    """Return the diagnostics as JSON values, with null for values that were not measured."""
    values = found.to_dict()
    for level in values["levels"]:
        # The residual norm belongs to the tokenizer's codes; an item with a moved ID has others.
        del level["residual_norm"]
        if np.isnan(level["neighbours_kept"]):
            level["neighbours_kept"] = None
    return values
