"""Fuse several runs: list items for the test targets by the mean of the runs' probabilities.

    python pipelines/fuse_runs.py runs/beauty-0 runs/beauty-1 runs/beauty-2 --out lists.parquet
    recgrit score lists.parquet --run runs/beauty-0

`recgrit score` evaluates the lists. The runs may differ in their seeds or in other settings, but
they need the same data. Each run has its own semantic IDs, and an item is listed if any run finds
it. `--masked` filters seen items out, for `recgrit score --masked`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from recgrit.disk import replacing
from recgrit.errors import ConfigError, RecgritError
from recgrit.evaluation.foreign_lists import name_lists
from recgrit.models.fusion import FusedRanker
from recgrit.ranking import recommend_items
from recgrit.runs import Run

# Kinds of models whose scores are log-probabilities, with or without an additive bonus.
KINDS = ("trie", "tiger", "decoder")


def main(
    directories: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders to fuse.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file for the lists.")] = Path("lists.parquet"),
    top_k: Annotated[int, typer.Option(help="Items per list.")] = 20,
    masked: Annotated[bool, typer.Option("--masked", help="Filter seen items out.")] = False,
) -> None:
    """Write the fused lists of all test targets."""
    runs = [Run(directory) for directory in directories]
    for run in runs:
        if run.model_kind not in KINDS:
            raise ConfigError(
                f"{run.directory} has the model {run.model_kind}, whose scores are no "
                f"probabilities: only runs of {', '.join(KINDS)} can be fused."
            )
        prepared = [found.manifest("prepare").fingerprint for found in (runs[0], run)]
        if prepared[0] != prepared[1]:
            raise ConfigError(
                f"{runs[0].directory} and {run.directory} have other data, fingerprints "
                f"{' and '.join(prepared)}: run both with the same data settings."
            )
    data, depth = runs[0].data, min(run.evaluated_beam_width() for run in runs)
    ranker = FusedRanker([run.ranker() for run in runs], depth=depth)
    users = data.split.target_users("test")
    found = recommend_items(ranker, data.split, "test", users, top_k=top_k, masked=masked)
    ids = data.interactions
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        name_lists(found, data.split, "test", ids.user_ids, ids.item_ids).write_parquet(temporary)
    print(out)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
