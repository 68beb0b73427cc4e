import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.errors import DataError
from recgrit.semantic_ids.table import SemanticIdTable, format_semantic_id, parse_semantic_id

CODES = [[0, 1, 5], [0, 1, 2], [0, 2, 0], [3, 0, 0], [0, 1, 3]]


@pytest.fixture
def table(make_table):
    return make_table(CODES, (4, 3, 6))


def test_look_up_both_ways(table):
    for item, codes in enumerate(CODES):
        name = f"item {item}"
        assert table.item_idx(name) == item
        assert table.codes_of(name) == tuple(codes)
        assert table.item_of(codes) == name
        assert table.item_of(table.codes[item]) == name
        assert table.item_of(parse_semantic_id(table.text_of(name))) == name
    assert (len(table), table.id_length) == (5, 3)


def test_an_id_no_item_has(table):
    assert table.item_of([3, 0, 1]) is None
    assert table.item_of([3, 0]) is None


def test_an_unknown_item_is_refused_with_an_example_id(table):
    with pytest.raises(DataError, match=r"No item 'itme 0' among the 5 items.*'item 0'"):
        table.codes_of("itme 0")


@pytest.mark.parametrize(
    ("prefix", "items"),
    [
        ([], [0, 1, 2, 3, 4]),
        ([0], [0, 1, 2, 4]),
        ((0, 1), [0, 1, 4]),
        ([0, 1, 2], [1]),
        ([2], []),
        ([0, 1, 2, 0], []),
    ],
)
def test_items_with_a_prefix(table, prefix, items):
    assert table.items_with_prefix(prefix).tolist() == items


def test_neighbours_share_the_longest_prefixes_first(make_table):
    codes = [[1, 1, 1], [1, 2, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1], [1, 1, 2]]
    found = make_table(codes, (2, 3, 3)).relatives("item 0")
    assert found.columns == ["shared_levels", "item_id", "title", "semantic_id"]
    # Item 2 shares later codes but not the first code, so it is not listed.
    assert found["item_id"].to_list() == ["item 3", "item 5", "item 1", "item 4"]
    assert found["shared_levels"].to_list() == [2, 2, 1, 1]
    assert found.row(0) == (2, "item 3", "Title 3", "<a_1><b_1><c_0>")


def test_neighbours_are_limited_and_may_be_none(table):
    assert table.relatives("item 0", limit=1)["item_id"].to_list() == ["item 1"]
    assert table.relatives("item 3").height == 0


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=26))
def test_text_round_trip(codes):
    assert parse_semantic_id(format_semantic_id(codes)) == tuple(codes)


@pytest.mark.parametrize(
    "text", ["", "12", "<a_1><c_2>", "<b_1>", "<a_1> <b_2>", "<a_1><b_>", "<a_-1>", "x<a_1>"]
)
def test_what_is_not_an_id_is_refused(text):
    with pytest.raises(DataError, match="is not a semantic ID"):
        parse_semantic_id(text)


@pytest.mark.parametrize("level", [None, 2])
def test_save_and_load(table, tmp_path, level):
    table = dataclasses.replace(table, disambiguation_level=level, codebook_sizes=(9, 9, 9))
    table.save(tmp_path)
    loaded = SemanticIdTable.load(tmp_path)
    assert loaded.codes.dtype == np.int32
    assert loaded.codes.tolist() == CODES
    # The sizes are those of the codebooks, although fewer codes are in use.
    assert loaded.codebook_sizes == (9, 9, 9)
    assert loaded.disambiguation_level == level
    assert loaded.item_ids.to_list() == table.item_ids.to_list()
    assert loaded.titles.to_list() == table.titles.to_list()


def test_missing_titles_survive(make_table, tmp_path):
    table = dataclasses.replace(make_table([[0], [1]]), titles=pl.Series(["Title 0", None]))
    table.save(tmp_path)
    assert SemanticIdTable.load(tmp_path).titles.to_list() == ["Title 0", None]


def test_a_foreign_file_is_refused(tmp_path):
    frame = pl.DataFrame({"item_id": ["a"], "level_0": [0]})
    frame.write_parquet(tmp_path / "semantic_ids.parquet")
    with pytest.raises(DataError, match="is not an item-ID table"):
        SemanticIdTable.load(tmp_path)


def test_an_item_without_an_id_is_refused(make_table, tmp_path):
    table = dataclasses.replace(make_table([[0], [1]]), item_ids=pl.Series(["a", None]))
    table.save(tmp_path)
    with pytest.raises(DataError, match="an item has no id"):
        SemanticIdTable.load(tmp_path)


@pytest.mark.parametrize("name", ["item_id", "title"])
def test_columns_of_numbers_are_no_ids_or_titles(make_table, tmp_path, name):
    make_table([[0], [1]]).save(tmp_path)
    path = tmp_path / "semantic_ids.parquet"
    metadata = pl.read_parquet_metadata(path)
    frame = pl.read_parquet(path).with_columns(pl.Series(name, [1, 2]))
    frame.write_parquet(path, metadata={k: v for k, v in metadata.items() if "recgrit" in k})
    with pytest.raises(DataError, match=f"the column {name} is Int64, not text"):
        SemanticIdTable.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.array([[0, 1], [0, 1]], np.int32)}, "share a semantic ID"),
        ({"codes": np.array([[0, 1], [0, 2]], np.int32)}, "within the codebook sizes"),
        ({"codes": np.array([[0, 1], [-1, 0]], np.int32)}, "within the codebook sizes"),
        ({"codebook_sizes": (2,)}, "one codebook size for each of 2 levels"),
        ({"item_ids": pl.Series(["a"])}, "2 rows, 1 ids, 2 titles"),
        ({"titles": pl.Series(["a", "b", "c"])}, "2 rows, 2 ids, 3 titles"),
        (
            {"codes": np.arange(54, dtype=np.int32).reshape(2, 27), "codebook_sizes": (99,) * 27},
            "at most 26",
        ),
    ],
)
def test_broken_tables_are_refused(make_table, changes, message):
    table = make_table([[0, 1], [1, 0]])
    with pytest.raises(DataError, match=message):
        dataclasses.replace(table, **changes)


def test_as_a_table(table):
    frame = table.to_polars()
    assert frame.columns == ["item_id", "title", "level_0", "level_1", "level_2", "semantic_id"]
    assert frame.row(3) == ("item 3", "Title 3", 3, 0, 0, "<a_3><b_0><c_0>")
    assert table.to_pandas().shape == (5, 6)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="recgrit tokenize"):
        SemanticIdTable.load(tmp_path)
