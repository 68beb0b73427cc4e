"""Fuzz every parser with coverage guidance: a file is read or refused with a message.

The first byte of an input chooses the parser. The second byte chooses how the remaining bytes are
written into a file, which replaces a well-formed file. Every exception except `RecgritError` ends
the run, and the input is kept. The script needs the extra ``fuzz``.

    python tests/fuzz/fuzz_parsers.py --seconds 300 --corpus /tmp/corpus
    python tests/fuzz/fuzz_parsers.py --repeat /tmp/corpus/crash-0123abcd
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import logging
import os
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["recgrit"]):
    from recgrit.config import load_config
    from recgrit.data.config import TableConfig
    from recgrit.data.items import ItemTable, read_item_list
    from recgrit.data.sources import load_source
    from recgrit.data.sources.table import Table
    from recgrit.embedding.vectors import load_vectors
    from recgrit.errors import RecgritError
    from recgrit.experiment import ExperimentConfig
    from recgrit.manifests import read_manifest
    from recgrit.semantic_ids.published import read_published_ids
    from recgrit.semantic_ids.table import SemanticIdTable, parse_semantic_id
    from recgrit.serving.files import read_histories

import polars as pl

LARGEST = 65_536
# Text that ends a field, a line or a text in some format, or that once broke a parser.
WORDS = (
    "\\x00", "\\x0d\\x0a", "\\x0a\\x0a", "\\x09", "::", "|", "\\x22", "'", "\\\\", "{}", "[[",
    "null", "NaN", "-1", "1e999", "9223372036854775808", "\\xff\\xfe", "\\xef\\xbb\\xbf",
    "\\xe2\\x80\\xa8", "=cmd", "<html>", "<!doctype html", "<a_1>", "<b_", "\\x1f\\x8b\\x08",
    "PK\\x03\\x04", "PAR1", "\\x93NUMPY", "user_id", "item_id", "timestamp", ":token",
    ":float_seq", ":token_seq", "userId,", "asin", "parent_asin", "reviewerID", "unixReviewTime",
    "semantic_id", "schema_version",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser with well-formed files that it reads.

    Args:
        name: Name for messages.
        files: Well-formed content by file name. The first file is damaged, then the second.
        parse: Function that reads the folder of the files.
    """

    name: str
    files: dict[str, bytes]
    parse: Callable[[Path], object]


def load_writers() -> dict[str, Callable[[Path], None]]:
    """Return the writers of the published formats from the tests, each with the tests' rows."""
    path = Path(__file__).parents[1] / "data" / "conftest.py"
    spec = importlib.util.spec_from_file_location("formats", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["formats"] = module
    spec.loader.exec_module(module)
    return {name: partial(write, rows=module.ROWS) for name, write in module.WRITERS.items()}


def read_source(name: str) -> Callable[[Path], object]:
    def parse(folder: Path) -> object:
        source = load_source(name)
        return source.read(source.find_files(folder), max_malformed_share=0.9)

    return parse


def read_table(folder: Path) -> object:
    (interactions,) = folder.glob("log.*")
    items = next(iter(folder.glob("items.*")), None)
    table = Table(**TableConfig(items_path=items, weight="stars").model_dump())
    return table.read(table.find_files(interactions), max_malformed_share=0.9)


def read_log_as_histories(folder: Path) -> object:
    items = ItemTable(pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}))
    return read_histories(next(folder.glob("log.*")), items)


TEXT = (
    b'user_id;item_id;timestamp;stars\r\nu;"a";2011-11-01 10:00:00.25+01:00;4,5\r\n'
    b'v;"b ""x""";30/9/2011 9:00 PM;5\r\n'
)
JSON_LINES = (
    b'{"user_id": "u", "item_id": 1, "timestamp": "Nov 1, 2011", "stars": 4}\n'
    b'{"user_id": "v", "item_id": 2, "timestamp": 1320105600123, "stars": 5}\n'
)


def build_targets(folder: Path) -> list[Target]:
    """Build one target for each format."""
    targets = []
    for name, write in load_writers().items():
        place = folder / name.replace("/", "-")
        place.mkdir()
        write(place)
        files = {path.name: path.read_bytes() for path in sorted(place.iterdir())}
        targets.append(Target(name, files, read_source(name.split(" ", maxsplit=1)[0])))
    targets += [_zipped(target) for target in targets if target.name.startswith("movielens-1m")]
    log = pl.DataFrame(
        {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2], "stars": [4.0, 5.0]}
    )
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "price": [1.0, None]})
    index = b'{"0": ["<a_1>", "<b_2>"], "1": ["<a_1>", "<b_2>"]}'
    numbers = b'{"0": {"item_id": "a", "title": "A"}, "1": {"item_id": "b"}}'
    ids = pl.Series(["a", "b"])
    targets += [
        Target("table csv", {"log.csv": _csv(log), "items.csv": _csv(items)}, read_table),
        Target("table text", {"log.txt": TEXT, "items.tsv": _csv(items)}, read_table),
        Target("table json", {"log.jsonl": JSON_LINES, "items.csv": _csv(items)}, read_table),
        Target("histories", {"log.csv": _csv(log)}, read_log_as_histories),
        Target(
            "table parquet", {"log.parquet": _parquet(log), "items.csv": _csv(items)}, read_table
        ),
        Target(
            "index.json",
            {"x.index.json": index, "x.item.json": numbers},
            lambda place: read_published_ids(place / "x.index.json", ids),
        ),
        Target(
            "item2id",
            {"x.item2id": b"a\t0\nb\t1\n", "x.index.json": index},
            lambda place: read_published_ids(place / "x.index.json", ids),
        ),
        Target("item list", {"x.txt": b"a\nb\n"}, lambda place: read_item_list(place / "x.txt")),
        Target(
            "semantic ID",
            {"x.txt": b"<a_1><b_2>"},
            lambda place: parse_semantic_id((place / "x.txt").read_text(errors="replace")),
        ),
        Target(
            "config",
            {"x.yaml": b"data:\n  source: recbole\nretriever:\n  epochs: 3\n"},
            lambda place: load_config(ExperimentConfig, place / "x.yaml"),
        ),
        Target("manifest", {"manifest.json": b'{"schema_version": 1, "files": {}}'}, read_manifest),
        Target(
            "vectors",
            {"x.parquet": _parquet(pl.DataFrame({"item_id": ids, "vector": [[1.0], [2.0]]}))},
            lambda place: load_vectors(place / "x.parquet", ids),
        ),
        Target("ID table", {"semantic_ids.parquet": _parquet(log)}, SemanticIdTable.load),
    ]
    return targets


def _zipped(target: Target) -> Target:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in target.files.items():
            archive.writestr(f"ml-1m/{name}", content)
    return Target(f"{target.name} zip", {"ml-1m.zip": packed.getvalue()}, target.parse)


def _csv(frame: pl.DataFrame) -> bytes:
    return frame.write_csv().encode()


def _parquet(frame: pl.DataFrame) -> bytes:
    packed = io.BytesIO()
    frame.write_parquet(packed)
    return packed.getvalue()


def write_input(target: Target, data: bytes, folder: Path) -> None:
    """Write the target's files with one file replaced, packed by gzip or not."""
    how, content = data[0], data[1:]
    names = list(target.files)
    damaged = names[how % len(names)]
    for old in folder.iterdir():
        old.unlink()
    for name, good in target.files.items():
        written = good if name != damaged else content
        if name == damaged and name.endswith(".gz") and how < 128:
            written = gzip.compress(content, compresslevel=1)
        (folder / name).write_bytes(written)


def seeds(targets: list[Target]) -> Iterator[bytes]:
    """Return well-formed inputs, from which the fuzzing starts."""
    for number, target in enumerate(targets):
        for place, (name, content) in enumerate(target.files.items()):
            plain = gzip.decompress(content) if name.endswith(".gz") else content
            yield bytes([number, place]) + plain


def main() -> None:
    """Fuzz for a while, or repeat one input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--corpus", type=Path, help="Where inputs worth keeping are kept.")
    parser.add_argument("--only", help="The one parser to fuzz.")
    parser.add_argument("--repeat", type=Path, help="An input of an earlier run.")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as temporary:
        root = Path(temporary)
        targets = build_targets(root)
        place = root / "input"
        place.mkdir()
        chosen = [t for t in targets if given.only in (None, t.name)]
        if not chosen:
            parser.error(f"--only is one of: {', '.join(target.name for target in targets)}")

        def check(data: bytes) -> None:
            if len(data) < 2:
                return
            target = chosen[data[0] % len(chosen)]
            write_input(target, data[1:], place)
            try:
                target.parse(place)
            except RecgritError:
                pass
            except BaseException:
                print(f"\n{target.name}, {dict.fromkeys(target.files)}", file=sys.stderr)
                traceback.print_exc()
                raise

        if given.repeat is not None:
            check(given.repeat.read_bytes())
            return
        corpus = given.corpus or root / "corpus"
        corpus.mkdir(exist_ok=True, parents=True)
        for number, seed in enumerate(seeds(chosen)):
            (corpus / f"seed-{number:02}").write_bytes(seed)
        words = root / "words"
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        options = [
            f"-max_total_time={given.seconds}",
            f"-max_len={LARGEST}",
            f"-seed={given.seed}",
            f"-dict={words}",
            f"-artifact_prefix={corpus}/",
            "-timeout=30",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
