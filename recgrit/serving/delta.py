"""What one night changed: the items that came, went or got another title, and how the IDs fare.

A feature store loads these rows and not the whole table. The report tells when the frozen tokenizer
no longer fits the catalogue: more collisions, fewer neighbours kept.

Shapes: N items, L levels.
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
    """What a bundle changed in the one before.

    Args:
        items: A row per item that is not as it was: item_id, change (``added``, ``removed`` or
            ``changed``), title, level_0 …, semantic_id. First the added, then the removed, then the
            changed, each in the order of the table.
        before: How the IDs of the items that were listed before spread.
        after: Likewise, of those that are listed now.
    """

    items: pl.DataFrame
    before: IdDiagnostics
    after: IdDiagnostics

    def describe(self) -> str:
        """Quality before and after in one line."""
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
    """The rows of a table that changed, each with its change."""
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
    """How the IDs of the listed items spread, and how many nearest neighbours they keep.

    The level that only tells items apart is left out: items that differ in nothing else collide.

    Args:
        table: Of all items.
        features: float32 ``[N, F]``.
        tokenizer: What gave them their codes.
        listed: bool ``[N]``.
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
    """Share of the codes of all levels that some item has."""
    used = sum(level.codebook_size - level.dead_codes for level in found.levels)
    return used / sum(level.codebook_size for level in found.levels)


def _compare(what: str, before: float, after: float) -> str:
    return f"{what} {before:.1%} and {after:.1%}"


def _to_json(found: IdDiagnostics) -> dict[str, Any]:
    """JSON has no NaN: what was not measured is null or left out."""
    values = found.to_dict()
    for level in values["levels"]:
        del level["residual_norm"]  # Of the tokenizer's own codes, which moved items do not have.
        if np.isnan(level["neighbours_kept"]):
            level["neighbours_kept"] = None
    return values
