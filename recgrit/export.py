"""A run's data and IDs in the files of other tools, so that their models see the same split.

RecBole: atomic files with one ``.inter`` whose own leave-one-out gives our targets. LETTER, LC-Rec
and MiniOneRec: ``.index.json`` with the semantic IDs, ``.inter.json`` with the sequences and
``.item.json`` with the texts, all by dense item number. The ID table alone comes as Parquet and as
JSON lines, the trie as safetensors; their rows and leaves are in the order of the dense number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recgrit.artifacts import replacing, write_atomic
from recgrit.data.prepare import PreparedData
from recgrit.data.splits import build_leave_one_out
from recgrit.errors import DataError
from recgrit.semantic_ids.table import SemanticIdTable, semantic_id_tokens
from recgrit.semantic_ids.trie import build_trie

# What would end a field or a line of a tab-separated file.
_BREAKS = r"[\t\r\n]+"


def export_recbole(data: PreparedData, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.inter`` and ``NAME.item``.

    RecBole makes our split of them by ``eval_args: {order: TO, split: {LS: valid_and_test}, mode:
    full}``. The time is the place in the user's sequence, from 0: RecBole reads times as 32-bit
    numbers, which cannot tell apart seconds of today, and would order what happened at once by
    chance.

    Raises:
        DataError: The run's split is not plain leave-one-out, which is all these files can say.
    """
    split, plain = data.split, build_leave_one_out(data.interactions)
    if not (
        np.array_equal(split.items, plain.items)
        and np.array_equal(split.train_ends, plain.train_ends)
    ):
        raise DataError(
            "Only a leave-one-out split of all items can be exported to RecBole, whose own split "
            "would train on what this run holds out. Prepare a run with data.split=leave_one_out "
            "and data.cold_item_share=0."
        )
    lengths = np.diff(split.offsets)
    users = np.repeat(np.arange(split.num_users), lengths)
    places = np.arange(len(users)) - np.repeat(split.offsets[:-1], lengths)
    inter = pl.DataFrame(
        {
            "user_id:token": data.interactions.user_ids.gather(users),
            "item_id:token": data.interactions.item_ids.gather(split.items),
            "timestamp:float": places,
        }
    )
    names = {"item_id": "item_id:token", "title": "title:token_seq"}
    items = data.items.frame.select(
        pl.col(ours).str.replace_all(_BREAKS, " ").alias(theirs) for ours, theirs in names.items()
    )
    paths = [folder / f"{name}.inter", folder / f"{name}.item"]
    for path, frame in zip(paths, (inter, items), strict=True):
        # RecBole splits at tabs and knows no quotes.
        write_atomic(path, frame.write_csv(separator="\t", quote_style="never"))
    return paths


def export_index(data: PreparedData, table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.index.json``, ``NAME.inter.json`` and ``NAME.item.json``."""
    split = data.split
    files: Mapping[str, Callable[[], Any]] = {
        "index": lambda: {
            str(item): semantic_id_tokens(codes) for item, codes in enumerate(table.codes.tolist())
        },
        "inter": lambda: {
            str(user): split.full_sequence(user).tolist() for user in range(split.num_users)
        },
        "item": lambda: {
            str(item): {"item_id": item_id, "title": title}
            for item, (item_id, title) in enumerate(
                zip(data.items.item_ids, data.items.titles, strict=True)
            )
        },
    }
    paths = []
    for kind, build in files.items():
        paths.append(folder / f"{name}.{kind}.json")
        write_atomic(paths[-1], json.dumps(build(), ensure_ascii=False) + "\n")
    return paths


def export_table(table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.parquet`` and ``NAME.jsonl``: item_id, title, codes, the ID as text."""
    paths = [folder / f"{name}.parquet", folder / f"{name}.jsonl"]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(paths[0]) as temporary:
        table.to_polars().write_parquet(temporary)
    lines = table.to_polars().select(
        "item_id", "title", codes=pl.concat_list(pl.col("^level_.*$")), semantic_id="semantic_id"
    )
    write_atomic(paths[1], lines.write_ndjson())
    return paths


def export_trie(table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.trie.safetensors``: the tables of `Trie` under their names."""
    path = folder / f"{name}.trie.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        build_trie(table.codes).save(temporary)
    return [path]
