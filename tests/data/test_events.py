"""Test event types that are targets, that occur only in histories, or that are ignored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recgrit.data.config import DataConfig
from recgrit.data.events import EventTypes
from recgrit.data.prepare import PreparedData, prepare
from recgrit.data.protocols import (
    CutOffTimes,
    Sequences,
    leave_one_out,
    split_by_time,
    without_items,
)
from recgrit.data.splits import SequenceSplit, SplitWriter
from recgrit.errors import DataError
from recgrit.export import export_index, export_recbole
from recgrit.semantic_ids.table import SemanticIdTable
from tests.data.small_data import build_sequences

WEIGHTS = {"view": 1, "cart": 3, "purchase": 5}
# Rows of user, item, event and time, in the order of time.
LOG = (
    ("a", "x", "view", 1),
    ("a", "y", "view", 2),
    ("a", "y", "purchase", 3),
    ("a", "z", "view", 4),
    ("a", "z", "purchase", 5),
    ("a", "w", "cart", 6),
    ("a", "w", "purchase", 7),
    ("a", "x", "view", 8),
    # User b has one purchase, which must not be the target of both splits.
    ("b", "x", "view", 1),
    ("b", "y", "purchase", 2),
    ("b", "z", "view", 3),
    # User c has nothing before the first of two purchases.
    ("c", "z", "purchase", 1),
    ("c", "y", "purchase", 2),
)
Row = tuple[str, str, str, int]


def write(path: Path, rows: Any = LOG) -> Path:
    pl.DataFrame(
        rows, schema=["user_id", "item_id", "kind", "timestamp"], orient="row"
    ).with_columns(pl.col("timestamp") + 1_700_000_000).write_csv(path)
    return path


def configure(path: Path, **values: Any) -> DataConfig:
    given = {
        "source": "table",
        "path": path,
        "table": {"event": "kind"},
        "event_weights": WEIGHTS,
        "target_events": ["purchase"],
        "min_user_interactions": 1,
        "min_item_interactions": 1,
    }
    return DataConfig.model_validate(given | values)


def prepared(path: Path, rows: Any = LOG, **values: Any) -> PreparedData:
    return prepare(configure(write(path / "log.csv", rows), **values))


def named(data: PreparedData, items: Any) -> str:
    return "".join(data.items.item_ids.gather(np.asarray(items)).to_list())


def test_the_last_target_events_are_held_out_after_their_full_history(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    split = data.split
    assert split.target_users("test").tolist() == split.target_users("valid").tolist() == [0]
    assert named(data, split.train_sequence(0)) == "xyyz"
    assert named(data, split.targets("valid", np.array([0]))) == "z"
    assert named(data, split.history(0, "valid")) == "xyyz"
    assert named(data, split.targets("test", np.array([0]))) == "w"
    assert named(data, split.history(0, "test")) == "xyyzzw"
    assert named(data, split.full_sequence(0)) == "xyyzzwwx"
    for user in (1, 2):
        assert split.train_sequence(user).tolist() == split.full_sequence(user).tolist()
    assert split.weights is not None
    assert split.weights.tolist() == [5.0 * (row[2] == "purchase") for row in LOG]
    assert data.interactions.frame["event"].to_list() == [row[2] for row in LOG]
    assert split.train_target_counts().sum() == 4
    assert ("users with a test target (purchase)", 1) in list(
        data.funnel.select("step", "counted").iter_rows()
    )


def test_all_types_with_a_weight_are_targets_unless_some_are_named(tmp_path: Path) -> None:
    data = prepared(
        tmp_path, event_weights={"view": 0, "cart": 3, "purchase": 5}, target_events=None
    )
    assert data.split.weights is not None
    assert set(data.split.weights.tolist()) == {0.0, 3.0, 5.0}
    assert named(data, data.split.targets("valid", np.array([0]))) == "w"


def test_types_left_out_are_counted(tmp_path: Path) -> None:
    data = prepared(tmp_path, event_weights=WEIGHTS | {"cart": None})
    assert "cart" not in data.interactions.frame["event"].to_list()
    dropped = data.funnel.filter(pl.col("step") == "events left out: cart")["dropped"].to_list()
    assert dropped == [1]


@pytest.mark.parametrize("weights", [{}, {"view": 1, "Purchase": 5}])
def test_types_without_a_weight_are_refused_with_their_counts(
    tmp_path: Path, weights: dict[str, float]
) -> None:
    with pytest.raises(DataError) as told:
        prepared(tmp_path, event_weights=weights, target_events=None)
    for part in ("purchase (6)", "view (6)", "cart (1)", "data.event_weights", "The column kind"):
        assert part in str(told.value)


def test_a_column_that_has_no_event_types_is_refused(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", f"session-{n}", n) for n in range(100)]
    with pytest.raises(DataError, match=r"is data\.table\.event the right"):
        prepared(tmp_path, rows)


def test_an_absent_type_is_reported_and_refused_as_the_only_target(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepared(tmp_path, event_weights=WEIGHTS | {"refund": 1})
    assert "names refund" in caplog.text
    with pytest.raises(DataError, match="No event is left to predict"):
        prepared(tmp_path, event_weights=WEIGHTS | {"buy": 1}, target_events=["buy"])


def test_rows_without_a_type_are_malformed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of them lack a type of event"):
        prepared(tmp_path, [*LOG, ("d", "x", "", 1), ("d", "x", " ", 2)])
    data = prepared(tmp_path, [*LOG, ("d", "x", None, 1)], max_malformed_share=0.5)
    assert len(data.interactions) == len(LOG)


def test_of_two_events_at_one_time_the_target_stays(tmp_path: Path) -> None:
    rows = [*LOG, ("c", "z", "view", 1), ("c", "y", "cart", 2), ("b", "x", "cart", 1)]
    data = prepared(tmp_path, rows)
    assert len(data.interactions) == len(LOG)
    kept = list(zip(*(data.interactions.to_polars()[n] for n in ("user_id", "event")), strict=True))
    assert [event for user, event in kept if user == "c"] == ["purchase", "purchase"]
    assert [event for user, event in kept if user == "b"] == ["cart", "purchase", "view"]


@pytest.mark.parametrize(("repeats", "expected"), [("first", [3, 6]), ("last", [4, 7])])
def test_of_repeats_the_strongest_type_stays(
    tmp_path: Path, repeats: str, expected: list[int]
) -> None:
    kinds = ["view", "view", "purchase", "purchase", "cart"]
    rows = [("a", "x", kind, time) for time, kind in enumerate(kinds, start=1)]
    rows += [("a", "y", "view", 6), ("a", "y", "view", 7)]
    data = prepared(tmp_path, rows, repeats=repeats)
    assert (data.interactions.frame["timestamp"] - 1_700_000_000).to_list() == expected


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_partitions_change_nothing(tmp_path: Path, split: str) -> None:
    draw = np.random.default_rng(0)
    kinds = draw.choice([*WEIGHTS, "search"], 600).tolist()
    numbers = [draw.integers(0, top, 600).tolist() for top in (60, 20, 99)]
    rows = [
        (f"u{user}", f"i{item}", kind, time)
        for kind, user, item, time in zip(kinds, *numbers, strict=True)
    ]
    found = []
    for users in (None, 7):
        data = prepared(
            tmp_path,
            rows,
            partition_users=users,
            split=split,
            cold_item_share=0.1,
            event_weights=WEIGHTS | {"search": None},
            min_item_interactions=3,
        )
        folder = tmp_path / f"{users}"
        folder.mkdir()
        data.save(folder)
        found.append({file.name: file.read_bytes() for file in folder.iterdir()})
        loaded = PreparedData.load(folder)
        assert np.array_equal(loaded.split.weights, data.split.weights)
        assert loaded.interactions.frame.equals(data.interactions.frame)
    assert found[0] == found[1]
    assert "sequence_weights.npy" in found[0]


rows_with_events = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("wxyz"), st.integers(0, 9), st.booleans()),
    min_size=1,
    max_size=40,
)


def with_targets(values: list[tuple[str, str, int, bool]]) -> Sequences:
    found = build_sequences([row[:3] for row in values])
    by_user: dict[str, list[tuple[int, bool]]] = {}
    for user, _, time, is_target in values:
        by_user.setdefault(user, []).append((time, is_target))
    flags = [
        is_target
        for own in by_user.values()
        for _, is_target in sorted(own, key=lambda pair: pair[0])
    ]
    return Sequences(
        found.items, found.times, found.offsets, found.num_items, np.float32(2) * np.array(flags)
    )


@settings(max_examples=150, deadline=None)
@given(rows_with_events)
def test_leave_one_out_holds_out_the_last_two_target_events(
    values: list[tuple[str, str, int, bool]],
) -> None:
    sequences = with_targets(values)
    split = leave_one_out(sequences)
    assert sequences.weights is not None
    for user in range(split.num_users):
        start, end = split.offsets[user], split.offsets[user + 1]
        own = [p for p in range(start, end) if sequences.weights[p] > 0]
        expected = (end, -1, -1)
        if len(own) >= 2 and own[-2] > start:
            expected = (own[-2], own[-2], own[-1])
        assert (
            split.train_ends[user],
            split.valid_targets[user],
            split.test_targets[user],
        ) == expected


@settings(max_examples=150, deadline=None)
@given(rows_with_events, st.integers(0, 9), st.integers(0, 9))
def test_a_split_by_time_holds_out_the_first_target_event_of_a_period(
    values: list[tuple[str, str, int, bool]], first: int, second: int
) -> None:
    sequences = with_targets(values)
    cut_offs = CutOffTimes(min(first, second), max(first, second))
    split = split_by_time(sequences, cut_offs)
    assert sequences.weights is not None
    for user in range(split.num_users):
        start, end = split.offsets[user], split.offsets[user + 1]
        own = [(p, sequences.times[p]) for p in range(start + 1, end) if sequences.weights[p] > 0]
        valid = [p for p, time in own if cut_offs.valid <= time < cut_offs.test]
        test = [p for p, time in own if cut_offs.test <= time]
        assert split.valid_targets[user] == (valid or [-1])[0]
        assert split.test_targets[user] == (test or [-1])[0]


def test_removing_items_keeps_the_weights_of_the_others() -> None:
    sequences = with_targets([("a", item, time, item != "x") for time, item in enumerate("xyzw")])
    split = without_items(leave_one_out(sequences), np.array([False, True, False, False]))
    assert split.weights is not None
    assert split.items.tolist() == [0, 2, 3]
    assert split.weights.tolist() == [0.0, 2.0, 2.0]


def test_saved_weights_have_to_fit(tmp_path: Path) -> None:
    split = leave_one_out(with_targets([("a", "x", n, True) for n in range(4)]))
    with SplitWriter(tmp_path, 1) as writer:
        writer.add(split)
    assert np.array_equal(SequenceSplit.load(tmp_path, 1).weights, split.weights)
    np.save(tmp_path / "sequence_weights.npy", np.ones(3, np.float32))
    with pytest.raises(DataError, match="a weight for each of 4"):
        SequenceSplit.load(tmp_path, 1)
    np.save(tmp_path / "sequence_weights.npy", np.ones(4))
    with pytest.raises(DataError, match="expected float32"):
        SequenceSplit.load(tmp_path, 1)
    for odd in (np.nan, np.inf, -1):
        np.save(tmp_path / "sequence_weights.npy", np.array([1, 1, odd, 1], np.float32))
        with pytest.raises(DataError, match="finite numbers of at least 0"):
            SequenceSplit.load(tmp_path, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"table": {}}, "need the column of event types"),
        ({"source": "recbole"}, "works only with source=table"),
        ({"split": "minionerec"}, "works only with split=leave_one_out or temporal"),
        ({"target_events": ["buy"]}, "'buy', which has no weight"),
        ({"target_events": []}, "there is no target"),
        ({"event_weights": {"view": 0}, "target_events": None}, "there is no target"),
        ({"event_weights": {"view": -1}}, "weights are numbers from 0"),
        ({"event_weights": {"view": float("nan")}}, "weights are numbers from 0"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        configure(Path("x"), **values)


def test_only_the_named_types_are_targets() -> None:
    types = EventTypes.of({"a": 9, "b": 1, "c": 2, "d": None}, ("c", "b"))
    assert types is not None
    assert (types.names, types.targets) == (("a", "b", "c"), ("b", "c"))
    assert types.left_out == ("d",)
    assert types.weigh(np.array([2, 0, 1], np.int8)).tolist() == [2.0, 0.0, 1.0]


def test_other_tools_get_the_same_targets(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    export_recbole(data, tmp_path, "shop")
    lines = (tmp_path / "shop.train.inter").read_text().splitlines()[1:]
    assert lines == ["a\tx y\ty", "b\tx\ty", "c\tz\ty"]
    assert (tmp_path / "shop.test.inter").read_text().splitlines()[1:] == ["a\tx y y z z w\tw"]


def test_an_export_without_event_types_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = prepared(tmp_path)
    codes = np.arange(data.interactions.num_items, dtype=np.int32)[:, None]
    table = SemanticIdTable(codes, (len(codes),), None, data.items.item_ids, data.items.titles)
    with caplog.at_level(logging.WARNING):
        export_index(data, table, tmp_path, "shop")
    assert "events of all types" in caplog.text
