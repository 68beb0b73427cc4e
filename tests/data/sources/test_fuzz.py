"""Damaged files: every parser returns consistent rows, or raises an error that names the file.

This command tries more examples than the test suite:

    RECGRIT_FUZZ_EXAMPLES=20000 python -m pytest tests/data/sources/test_fuzz.py
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recgrit.data.sources import load_source
from recgrit.errors import DataError

FORMATS = [
    "movielens-100k",
    "movielens-100k as atomic files",
    "movielens-1m",
    "movielens-latest-small",
    "recbole",
    "amazon2014/Beauty",
    "amazon2014/Beauty as ratings",
    "amazon2018/Gift_Cards",
    "amazon2023/All_Beauty",
    "amazon2023/All_Beauty as splits",
]
# Scraps that occurred in real files, and characters that end a field, a line or a text.
SCRAPS = st.sampled_from(
    [
        b"\0",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\t",
        b",",
        b"::",
        b"|",
        b'"',
        b"'",
        b"\\",
        b"{",
        b"}]",
        b"null",
        b"-1",
        b"nan",
        b"1e999",
        b"99999999999999999999",
        b"\xff\xfe",
        b"\xc3",
        b"\xef\xbb\xbf",
        "é\u2028".encode(),
        b"=cmd|' /C calc'!A0",
        b"<html>",
        b"x" * 100_000,
    ]
)
DAMAGE = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["insert", "replace", "cut"]), SCRAPS),
    min_size=1,
    max_size=4,
)


def damage(content: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for place, how, scrap in changes:
        at = int(place * len(content))
        if how == "cut":
            content = content[:at]
        else:
            content = content[:at] + scrap + content[at + len(scrap) * (how == "replace") :]
    return content


@pytest.mark.parametrize("written_as", FORMATS)
@settings(
    max_examples=int(os.environ.get("RECGRIT_FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(which=st.integers(0, 3), packed=st.booleans(), changes=DAMAGE)
def test_damage_is_counted_or_refused(
    write_dataset: Callable[..., Path],
    written_as: str,
    which: int,
    packed: bool,
    changes: list[tuple[float, str, bytes]],
) -> None:
    folder = write_dataset(written_as)
    paths = sorted(folder.iterdir())
    path = paths[which % len(paths)]
    content = path.read_bytes()
    if path.suffix == ".gz" and not packed:
        path.write_bytes(gzip.compress(damage(gzip.decompress(content), changes)))
    else:
        path.write_bytes(damage(content, changes))
    source = load_source(written_as.split(" ", maxsplit=1)[0])
    told = ""
    try:
        raw = source.read(source.find_files(folder), max_malformed_share=0.9)
    except DataError as error:
        told = str(error)
    if told:
        assert path.name in told
        return
    assert raw.interactions.height == raw.counts["rows_read"] - raw.counts["rows_malformed"]
    left_out = raw.counts["items_malformed"] + raw.counts["items_repeated"]
    assert raw.items.height == raw.counts["items_read"] - left_out
    assert raw.interactions.null_count().sum_horizontal().item() == 0
    assert raw.items["item_id"].is_unique().all()
