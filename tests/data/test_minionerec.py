from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.config import load_config
from recgrit.data.config import DataConfig
from recgrit.data.minionerec import keep_short_titles, minionerec
from recgrit.data.prepare import prepare
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, DataError
from recgrit.runs import Run
from tests.data.small_data import build_interactions, build_sequences

Row = tuple[str, str, int]
Sample = tuple[str, list[str], str]


def published(rows: list[Row]) -> list[list[Sample]]:
    """Return the samples that MiniOneRec's script makes for train, valid and test.

    A sample is a user, a history and a target.
    """
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row[0], []).append(row)
    samples = []
    for user, own in by_user.items():
        own.sort(key=lambda row: row[2])
        items = [row[1] for row in own]
        samples += [
            (own[i][2], (user, items[max(i - 10, 0) : i], items[i])) for i in range(1, len(own))
        ]
    samples.sort(key=lambda sample: sample[0])
    first, second = int(len(samples) * 0.8), int(len(samples) * 0.9)
    plain = [sample for _, sample in samples]
    return [plain[:first], plain[first:second], plain[second:]]


def rows_of(draws: list[tuple[int, int, int]]) -> list[Row]:
    return [(f"u{user}", f"i{item}", time) for user, item, time in draws]


rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=120
).map(rows_of)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_samples_are_those_of_the_published_script(values: list[Row]) -> None:
    interactions, sequences = build_interactions(values), build_sequences(values)
    train, valid, test = published(values)
    if not (train and valid and test):
        with pytest.raises(DataError, match="cannot be split 8:1:1"):
            minionerec(sequences)
        return
    split = minionerec(sequences)
    user_ids, item_ids = interactions.user_ids.to_list(), interactions.item_ids.to_list()
    names: Callable[[Any], list[str]] = lambda found: [item_ids[i] for i in found]  # noqa: E731
    for name, expected in (("valid", valid), ("test", test)):
        sequences = split.target_users(name)
        targets = names(split.targets(name, sequences))
        assert [
            (user_ids[owner], names(split.history(int(sequence), name)), target)
            for sequence, owner, target in zip(
                sequences, split.owners_of(sequences), targets, strict=True
            )
        ] == expected
    # Training has every sample of the first part exactly once, and no others.
    learned = []
    for sequence in range(split.num_sequences):
        own = names(split.train_sequence(sequence))
        learned += [
            (user_ids[sequence], own[max(i - 10, 0) : i], own[i]) for i in range(1, len(own))
        ]
    assert sorted(learned) == sorted(train)
    assert split.num_users == interactions.num_users
    for user in range(split.num_users):
        assert names(split.full_sequence(user)) == [
            row[1]
            for row in sorted(
                (row for row in values if row[0] == user_ids[user]), key=lambda row: row[2]
            )
        ]


@pytest.fixture
def config(tiny_data: Path) -> DataConfig:
    return DataConfig(path=tiny_data, split="minionerec")


def test_the_split_can_be_set_saved_and_loaded(config: DataConfig, tmp_path: Path) -> None:
    data = prepare(config)
    counted = dict(data.funnel.select("step", "counted").iter_rows())
    num_samples = len(data.interactions) - data.interactions.num_users
    assert counted["test targets"] == num_samples - int(num_samples * 0.9)
    assert counted["validation targets"] == int(num_samples * 0.9) - int(num_samples * 0.8)
    data.save(tmp_path)
    loaded = SequenceSplit.load(tmp_path, num_items=data.interactions.num_items)
    for field in dataclasses.fields(SequenceSplit):
        assert np.array_equal(getattr(loaded, field.name), getattr(data.split, field.name))


def test_every_target_is_evaluated(
    new_config: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    done = command("run", new_config(data={"split": "minionerec"}), "--json")
    assert done.code == 0, done.err
    run = Run(tmp_path / "runs" / "new")
    split, report = run.data.split, run.report("test")
    assert report.per_target.height == len(split.target_users("test"))
    assert report.protocol["num_users"] < report.protocol["num_targets"]
    assert report.per_target["user_idx"].n_unique() == report.protocol["num_users"]
    assert done.json()["num_users"] == report.protocol["num_users"]
    assert f"{report.per_target.height} targets of" in done.out
    # Lists are made for users, from all their interactions. Copies of histories do not count as
    # users.
    lists = pl.read_parquet(run.directory / "recommendations" / "recommendations.parquet")
    assert set(lists["user_id"]) == set(run.data.interactions.user_ids)


def test_cold_items_are_refused_with_this_split() -> None:
    with pytest.raises(ConfigError, match="cold_item_share works only with split=leave_one_out"):
        load_config(DataConfig, overrides=["split=minionerec", "cold_item_share=0.1"])


def test_items_with_long_or_missing_titles_are_dropped() -> None:
    interactions = pl.DataFrame({"item_id": ["a", "b", "c", "d"]})
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["one two", "one two three", None]})
    assert keep_short_titles(interactions, items, 2)["item_id"].to_list() == ["a"]


def test_owners_must_fit(config: DataConfig) -> None:
    split = prepare(config).split
    with pytest.raises(DataError, match="Expected an owner for each of"):
        dataclasses.replace(split, owners=np.array([0]))
