"""Export of a run's data and IDs to the files of other tools, which then use the same split.

RecBole: atomic files, which are tab-separated tables with typed columns. For plain leave-one-out
there is one ``.inter`` file, from which RecBole makes the same targets. Any other split gets one
``.inter`` file per part. ``.item`` and ``.user`` hold all fields.

LETTER, LC-Rec and MiniOneRec: ``.index.json`` with the semantic IDs and ``.item.json`` with the
texts, both by item_idx, and ``.inter.json`` with the item_idx sequence of each user_idx.

Any tool: the ID table as Parquet and as JSON lines, and the trie as safetensors. Their rows and
leaves are in the order of item_idx.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recgrit.data.minionerec import MAX_HISTORY
from recgrit.data.prepare import PreparedData
from recgrit.data.protocols import Sequences, leave_one_out
from recgrit.data.splits import SequenceSplit, Split
from recgrit.disk import replacing, replacing_files, write_atomic
from recgrit.errors import DataError
from recgrit.semantic_ids.table import SemanticIdTable, semantic_id_tokens
from recgrit.semantic_ids.trie import build_trie

logger = logging.getLogger(__name__)

# Characters that end a field or a line of a tab-separated file.
_BREAKS = r"[\t\r\n]+"
# RecBole reads its files with pandas, which treats these texts as missing values. pandas also
# expects a quote at the start of a field to be closed at its end. A blank before it prevents that.
_READ_AS_MISSING = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
# Fewest interactions of a user for which RecBole's leave-one-out equals this one. With fewer
# interactions, RecBole trains on the validation target.
_SHORTEST_LEFT_ONE_OUT = 4
# Most history items of an exported sample, if the split itself sets no limit. Models seldom read
# older items.
LONGEST_HISTORY = 50


def export_recbole(data: PreparedData, folder: Path, name: str) -> list[Path]:
    """Write RecBole's atomic files of the interactions, the items and, if known, the users.

    For plain leave-one-out, RecBole makes the same split from ``NAME.inter`` by ``eval_args:
    {order: TO, split: {LS: valid_and_test}, mode: full}``, if every user has at least four
    interactions. The exported time is the position in the user's sequence, from 0. RecBole reads
    times as 32-bit numbers, which cannot distinguish seconds of today and would order simultaneous
    interactions by chance.

    Any other split is written as ``NAME.train.inter``, ``NAME.valid.inter`` and
    ``NAME.test.inter``, which RecBole reads by ``benchmark_filename: [train, valid, test]`` and
    ``alias_of_item_id: [item_id_list]``. Each line is one target with the history before it.

    RecBole splits lists of words at blanks, so blanks within a word become underscores.

    Args:
        data: Prepared data of the run.
        folder: Folder for the files.
        name: First part of the file names, NAME.

    Returns:
        Paths of the written files.

    Raises:
        DataError: Ids contain characters that these files cannot represent, or would be read as
            missing values, such as ``NA``.
    """
    _refuse_ids(data)
    with replacing_files(folder) as temporary:
        written = _write_recbole(data, temporary, name)
    return [folder / path.name for path in written]


def _write_recbole(data: PreparedData, folder: Path, name: str) -> list[Path]:
    split = data.split
    described = [_write_atomic_file(data.items.frame, folder / f"{name}.item")]
    if data.users is not None:
        described.append(_write_atomic_file(data.users, folder / f"{name}.user"))
    if not _is_plain(data):
        paths = _export_samples(
            split, folder, name, data.interactions.user_ids, data.interactions.item_ids
        )
        return [*paths, *described]
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
    write_atomic(folder / f"{name}.inter", inter.write_csv(separator="\t", quote_style="never"))
    return [folder / f"{name}.inter", *described]


def _write_atomic_file(frame: pl.DataFrame, path: Path) -> Path:
    """Write a table as an atomic file: a header of names and types, then one line per row."""
    columns = []
    for name, kind in frame.schema.items():
        column = pl.col(name)
        if isinstance(kind, pl.List) and kind.inner.is_numeric():
            field, column = "float_seq", column.cast(pl.List(pl.String)).list.join(" ")
        elif isinstance(kind, pl.List):
            words = column.list.eval(pl.element().str.replace_all(r"\s+", "_"))
            field, column = "token_seq", words.list.join(" ")
        elif kind.is_numeric():
            field = "float"
        else:
            field = "token_seq" if name == "title" else "token"
            column = column.str.replace_all(_BREAKS, " ")
        if not kind.is_numeric():
            column = column.str.replace('^"', ' "')
        columns.append(column.alias(f"{name}:{field}"))
    write_atomic(path, frame.select(columns).write_csv(separator="\t", quote_style="never"))
    return path


def _is_plain(data: PreparedData) -> bool:
    """Return whether the split is leave-one-out of all items, exactly as RecBole makes it."""
    split, sizes = data.split, (data.interactions.num_users, data.interactions.num_items)
    if split.weights is not None:
        return False
    plain = leave_one_out(Sequences.of(data.interactions.frame, *sizes))
    return (
        np.array_equal(split.items, plain.items)
        and np.array_equal(split.train_ends, plain.train_ends)
        and int(np.diff(split.offsets).min()) >= _SHORTEST_LEFT_ONE_OUT
    )


def _refuse_ids(data: PreparedData) -> None:
    for what, ids in (("user", data.interactions.user_ids), ("item", data.interactions.item_ids)):
        for broken, reason in (
            (ids.str.contains(r"\s"), "hold blanks, tabs or line breaks, which separate values"),
            (ids.str.starts_with('"'), "start with a quote, which would have to be closed"),
            (ids.is_in(_READ_AS_MISSING), "would be read as missing"),
        ):
            if broken.any():
                raise DataError(
                    f"{broken.sum()} {what} ids cannot be written in RecBole's files: they "
                    f"{reason}; the first is {ids.filter(broken)[0]!r}. Rename them in the source."
                )


def _export_samples(
    split: SequenceSplit, folder: Path, name: str, user_ids: pl.Series, item_ids: pl.Series
) -> list[Path]:
    """Write one file per part of the split, with one line per target, in the order of the split."""
    longest = MAX_HISTORY if split.owners is not None else LONGEST_HISTORY
    users, items = user_ids.to_list(), item_ids.to_list()
    paths = []
    for part, samples in (
        ("train", _training_samples(split)),
        ("valid", _target_samples(split, "valid")),
        ("test", _target_samples(split, "test")),
    ):
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        for user, start, target in samples:
            own = split.items[max(start, target - longest) : target + 1].tolist()
            history = " ".join(items[item] for item in own[:-1])
            lines.append(f"{users[user]}\t{history}\t{items[own[-1]]}")
        paths.append(folder / f"{name}.{part}.inter")
        write_atomic(paths[-1], "\n".join(lines) + "\n")
    return paths


def _training_samples(split: SequenceSplit) -> Iterator[tuple[int, int, int]]:
    """Yield the user, the start of the sequence and the target position of each training target."""
    may_be_target = np.True_ if split.weights is None else split.weights > 0
    is_target = np.broadcast_to(may_be_target, len(split.items))
    for user in range(split.num_users):
        start = int(split.offsets[user])
        for target in range(start + 1, int(split.train_ends[user])):
            if is_target[target]:
                yield user, start, target


def _target_samples(split: SequenceSplit, part: Split) -> Iterator[tuple[int, int, int]]:
    sequences = split.target_users(part)
    yield from zip(
        split.owners_of(sequences).tolist(),
        np.asarray(split.offsets[sequences]).tolist(),
        np.asarray(split.target_positions(part)[sequences]).tolist(),
        strict=True,
    )


def export_index(data: PreparedData, table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.index.json``, ``NAME.inter.json`` and ``NAME.item.json``.

    For MiniOneRec's split it also writes ``NAME.{train,valid,test}.inter``, with user_idx and
    item_idx as ids. MiniOneRec's ``convert_dataset.py`` reads these files beside the others.

    Args:
        data: Prepared data of the run.
        table: Semantic IDs of the items.
        folder: Folder for the files.
        name: First part of the file names, NAME.

    Returns:
        Paths of the written files.
    """
    split = data.split
    if split.weights is not None:
        logger.warning(
            "%s.inter.json holds events of all types; the tools that read it predict the last "
            "events of a user, whatever their types",
            name,
        )
    with replacing_files(folder) as temporary:
        written = _write_index(data, table, temporary, name)
    return [folder / path.name for path in written]


def _write_index(data: PreparedData, table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
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
    if split.owners is not None:
        users, items = (
            pl.Series(np.arange(count)).cast(pl.String) for count in (split.num_users, len(table))
        )
        paths += _export_samples(split, folder, name, users, items)
    return paths


def export_table(table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
    """Write the ID table as ``NAME.parquet`` and ``NAME.jsonl``.

    Each row has the item_id, the title, the codes, and the ID as text.

    Args:
        table: Semantic IDs of the items.
        folder: Folder for the files.
        name: First part of the file names, NAME.

    Returns:
        Paths of the written files.
    """
    with replacing_files(folder) as temporary:
        table.to_polars().write_parquet(temporary / f"{name}.parquet")
        lines = table.to_polars().select(
            "item_id",
            "title",
            codes=pl.concat_list(pl.col("^level_.*$")),
            semantic_id="semantic_id",
        )
        lines.write_ndjson(temporary / f"{name}.jsonl")
    return [folder / f"{name}.parquet", folder / f"{name}.jsonl"]


def export_trie(table: SemanticIdTable, folder: Path, name: str) -> list[Path]:
    """Write the arrays of the `Trie` of the IDs as ``NAME.trie.safetensors``, under their names.

    Args:
        table: Semantic IDs of the items.
        folder: Folder for the file.
        name: First part of the file name, NAME.

    Returns:
        Path of the written file, in a list.
    """
    path = folder / f"{name}.trie.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        build_trie(table.codes).save(temporary)
    return [path]
