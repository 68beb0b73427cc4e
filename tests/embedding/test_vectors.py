import logging

import numpy as np
import polars as pl
import pytest

from recgrit.embedding.vectors import load_some_vectors, load_vectors
from recgrit.errors import DataError

ITEM_IDS = pl.Series(["c", "a", "b"])


def write_parquet(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_npy_rows_are_items_in_order(tmp_path):
    vectors = np.arange(6, dtype=np.float64).reshape(3, 2)
    np.save(tmp_path / "mine.npy", vectors)
    loaded = load_vectors(tmp_path / "mine.npy", ITEM_IDS)
    np.testing.assert_array_equal(loaded.vectors, vectors)
    assert (loaded.encoder, loaded.normalized) == ("vectors:mine.npy", False)


def test_unit_rows_are_noticed(tmp_path):
    np.save(tmp_path / "v.npy", np.eye(3))
    assert load_vectors(tmp_path / "v.npy", ITEM_IDS).normalized


@pytest.mark.parametrize("dtype", [pl.List(pl.Float64), pl.Array(pl.Float32, 2)])
def test_parquet_lists_are_matched_by_id(tmp_path, dtype, caplog):
    path = write_parquet(
        tmp_path / "v.parquet",
        item_id=["a", "b", "c", "d"],
        vector=pl.Series([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=dtype),
    )
    with caplog.at_level(logging.INFO, logger="recgrit"):
        loaded = load_vectors(path, ITEM_IDS)
    np.testing.assert_array_equal(loaded.vectors, [[5, 6], [1, 2], [3, 4]])
    assert "Ignored 1 rows" in caplog.text


def test_parquet_number_columns_are_matched_by_id(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", x=[1, 2, 3], item_id=["a", "b", "c"], y=[0.5] * 3)
    loaded = load_vectors(path, ITEM_IDS)
    np.testing.assert_array_equal(loaded.vectors, [[3, 0.5], [1, 0.5], [2, 0.5]])


def test_number_ids_match_text_ids(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", item_id=[7, 9], vector=[[1.0], [2.0]])
    np.testing.assert_array_equal(load_vectors(path, pl.Series(["9", "7"])).vectors, [[2], [1]])


def test_missing_items_are_counted_and_named(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", item_id=["a"], vector=[[1.0]])
    ids = pl.Series(["z", "a", "y", "x", "w"])
    with pytest.raises(DataError, match=r"4 of 5 items, the first \['z', 'y', 'x'\]"):
        load_vectors(path, ids)


def test_repeated_items_are_refused(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", item_id=["a", "b", "a"], vector=[[1.0]] * 3)
    with pytest.raises(DataError, match=r"1 items more than once, the first \['a'\]"):
        load_vectors(path, ITEM_IDS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "vector": [[1.0]]}, "needs a column 'item_id'"),
        ({"item_id": ["c", "a", "b"], "vector": [[1.0], [1.0, 2.0], [3.0]]}, r"lengths \[1, 2\]"),
        (
            {"item_id": ["c", "a", "b"], "vector": [[1.0], None, [3.0]]},
            r"1 of 3 items, the first \['a'\]",
        ),
        ({"item_id": ["c", "a", "b"], "vector": [[1.0], [None], [3.0]]}, r"item_idx \[1\]"),
        ({"item_id": ["c", "a", "b"], "vector": [[1.0], [np.nan], [3.0]]}, r"item_idx \[1\]"),
        ({"item_id": ["c", "a", "b"], "vector": [["x"]] * 3}, r"not numbers: \['vector'\]"),
        ({"item_id": ["c", "a", "b"], "x": [1, 2, 3], "name": list("xyz")}, r"\['name'\]"),
        ({"item_id": ["c", "a", "b"]}, "needs a list column 'vector'"),
    ],
)
def test_malformed_parquet_is_refused(tmp_path, columns, message):
    path = write_parquet(tmp_path / "v.parquet", **columns)
    with pytest.raises(DataError, match=message):
        load_vectors(path, ITEM_IDS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 4)), "2 embeddings .* for 3 items"),
        (np.ones(3), "float32 vectors of shape"),
        (np.array([[1, np.nan]] * 3), "3 of 3 embeddings hold NaN"),
        (np.full((3, 2), 1e300), "3 of 3 embeddings hold NaN or infinity"),
        (np.array([["a"]] * 3), "expected numbers"),
        (np.array([[{}]] * 3, dtype=object), "Object arrays are refused"),
    ],
)
def test_malformed_npy_is_refused(tmp_path, array, message):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load_vectors(tmp_path / "v.npy", ITEM_IDS)


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_files_of_another_kind_are_refused(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match="Cannot read"):
        load_vectors(tmp_path / name, ITEM_IDS)


def test_unknown_formats_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a \.npy, \.parquet or \.index\.json file"):
        load_vectors(tmp_path / "v.csv", ITEM_IDS)
    with pytest.raises(DataError, match="No vectors at"):
        load_vectors(tmp_path / "v.npy", ITEM_IDS)


def test_some_items_may_lack_a_vector_of_a_block(tmp_path, caplog):
    path = write_parquet(
        tmp_path / "v.parquet",
        item_id=["c", "a", "other"],
        vector=[[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]],
    )
    found = load_some_vectors(path, ITEM_IDS)
    np.testing.assert_array_equal(found.vectors, [[1, 2], [0, 0], [0, 0]])
    assert found.given.tolist() == [True, False, False]  # A vector of zeros counts as missing.
    with pytest.raises(DataError, match="no vector for any of the 1 items, such as"):
        load_some_vectors(path, pl.Series(["z"]))


def test_a_vector_of_a_block_that_is_not_finite_is_refused(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", item_id=["c", "a"], vector=[[1.0], [np.nan]])
    with pytest.raises(DataError, match=r"item_idx \[1\]"):
        load_some_vectors(path, ITEM_IDS)


def test_published_codes_are_one_hot_vectors(tmp_path):
    path = tmp_path / "Mine.index.json"
    path.write_text('{"a": ["<a_0>", "<b_1>"], "c": ["<a_1>", "<b_0>"], "z": ["<a_0>", "<b_2>"]}')
    found = load_some_vectors(path, ITEM_IDS)
    np.testing.assert_array_equal(found.vectors, [[0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0] * 5])
    assert found.given.tolist() == [True, True, False]
    with pytest.raises(DataError, match=r"lacks vectors for 1 of 3 items, the first \['b'\]"):
        load_vectors(path, ITEM_IDS)
