from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recgrit.config import load_config
from recgrit.data.config import DataConfig
from recgrit.data.items import ItemTable
from recgrit.data.prepare import PreparedData, find_input_files, prepare
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, DataError

NAME = "movielens-latest-small"
# Four users and four items, each pair at its own time, which the k-core filter keeps completely.
CORE = [(f"u{u}", f"{10 * i}", 1 + (u + i) % 5, 10 * u + i) for u in range(4) for i in range(1, 5)]


def steps(data: PreparedData, column: str) -> dict[str, int | None]:
    return dict(data.funnel.select("step", column).iter_rows())


@pytest.fixture
def prepare_rows(write_dataset: Callable[..., Path]) -> Callable[..., PreparedData]:
    def run(rows: Sequence[tuple[str, str, float, int]] = CORE, **settings: object) -> PreparedData:
        settings = {"min_user_interactions": 1, "min_item_interactions": 1} | settings
        config = DataConfig.model_validate(
            {"source": NAME, "path": write_dataset(NAME, rows)} | settings
        )
        return prepare(config)

    return run


def test_ids_follow_first_appearance_and_ties_follow_the_file(
    write_dataset: Callable[..., Path],
) -> None:
    path = write_dataset(NAME)
    config = DataConfig(source=NAME, path=path, min_user_interactions=1, min_item_interactions=1)
    data = prepare(config)
    assert data.interactions.user_ids.to_list() == ["7", "9"]
    assert data.interactions.item_ids.to_list() == ["30", "10", "20"]
    assert data.interactions.to_polars().select("user_id", "item_id", "timestamp").rows() == [
        ("7", "20", 90),
        ("7", "30", 100),
        ("7", "10", 100),
        ("9", "10", 50),
        ("9", "30", 60),
        ("9", "20", 70),
    ]
    assert data.interactions.frame.schema == {
        "user_idx": pl.Int32,
        "item_idx": pl.Int32,
        "timestamp": pl.Int64,
        "weight": pl.Float32,
    }


def test_untitled_items_are_titled_by_their_id(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    data = prepare_rows()
    titles = dict(data.items.frame.select("item_id", "title").iter_rows())
    # Item 30 has metadata without a title, and item 40 has no metadata.
    assert titles == {"10": "Toy Story", "20": "Misérables, Les", "30": "30", "40": "40"}
    counted = steps(data, "counted")
    assert counted["items without metadata"] == 1
    assert counted["items titled by their id"] == 2
    assert counted["metadata of items left out"] == 0


def test_every_row_is_accounted_for(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    user, item, _, time = CORE[0]
    extra = [
        ("", "10", 5.0, 1),
        ("u1", "10", "five", 2),
        (user, item, 5, time),
        (user, item, 5, time + 500),
        ("rare", "10", 5, 3),
    ]
    data = prepare_rows(
        [*CORE, *extra],
        max_malformed_share=0.2,
        min_weight=2,
        min_user_interactions=2,
        min_item_interactions=2,
    )
    low = sum(row[2] < 2 for row in CORE)
    assert steps(data, "dropped") == {
        "rows read": 0,
        "malformed": 1,
        "without user or item id": 1,
        "exact duplicates": 1,
        "weight below 2": low,
        "k-core of 2 per user, 2 per item": 1,
        "repeats of an item at another time": 0,
        "items without metadata": 0,
        "items titled by their id": 0,
        "metadata of items left out": 0,
        "kept": 0,
    }
    left = steps(data, "interactions")
    assert left["rows read"] == len(CORE) + len(extra)
    assert left["kept"] == len(data.interactions) == len(CORE) + 1 - low
    assert steps(data, "counted")["repeats of an item at another time"] == 1
    assert steps(data, "users")["exact duplicates"] == 5
    assert steps(data, "users")["kept"] == 4


def test_weight_threshold_includes_its_value(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    rows = [("a", "10", weight, i) for i, weight in enumerate([3.0, 3.1, 3.2])]
    assert len(prepare_rows(rows, min_weight=3.1).interactions) == 2


def test_too_high_a_weight_names_the_setting(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    message = r"at least 5\.5; the largest is 5\. Lower data\.min_weight"
    with pytest.raises(DataError, match=message):
        prepare_rows(min_weight=5.5)


def test_too_high_a_core_names_the_settings(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    message = r"fewer than 5 interactions.*Lower data\.min_user_interactions"
    with pytest.raises(DataError, match=message):
        prepare_rows(min_user_interactions=5)


def test_weight_threshold_without_ratings(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1\n")
    with pytest.raises(ConfigError, match=r"have no ratings\. Set data\.min_weight=null"):
        prepare(DataConfig(source="recbole", path=tmp_path, min_weight=3))


def test_save_and_load(prepare_rows: Callable[..., PreparedData], tmp_path: Path) -> None:
    data = prepare_rows()
    data.save(tmp_path)
    loaded = PreparedData.load(tmp_path)
    assert loaded.interactions.to_polars().equals(data.interactions.to_polars())
    assert loaded.items.frame.equals(data.items.frame)
    assert loaded.funnel.equals(data.funnel)
    for field in dataclasses.fields(SequenceSplit):
        if field.name != "people":
            written, read = getattr(data.split, field.name), getattr(loaded.split, field.name)
            assert np.array_equal(read, written)
    assert loaded.split.people is not None
    assert loaded.split.people.tolist() == list(range(4)), "each user's sequence is his own"


def test_parts_must_belong_together(prepare_rows: Callable[..., PreparedData]) -> None:
    data = prepare_rows()
    with pytest.raises(DataError, match="must list the items of the interactions"):
        dataclasses.replace(data, items=ItemTable(data.items.frame.reverse()))
    with pytest.raises(DataError, match="The split has"):
        dataclasses.replace(data, split=dataclasses.replace(data.split, num_items=9))


def test_a_temporal_split_is_a_setting(prepare_rows: Callable[..., PreparedData]) -> None:
    data = prepare_rows(split="temporal", valid_share=0.25, test_share=0.25)
    times = data.interactions.frame["timestamp"].to_numpy()
    assert times[data.split.train_mask()].max() < 20
    assert steps(data, "counted")["users with a test target"] == 1


def test_every_filter_has_its_row(prepare_rows: Callable[..., PreparedData]) -> None:
    day = 86_400
    rows = [
        ("u", "10", 5, 0),
        ("u", "10", 4, day),
        ("u", "20", 4, day + 1),
        ("u", "30", 4, day + 2),
        ("u", "20", 4, day + 3),
        ("u", "10", 4, 2 * day),
    ]
    data = prepare_rows(
        rows, since="1970-01-02", until="1970-01-03", repeats="last", min_title_length=1
    )
    assert {step: n for step, n in steps(data, "dropped").items() if n} == {
        "not from 1970-01-02 to 1970-01-03": 2,
        "repeats of an item, the last kept": 1,
        "title shorter than 1": 1,
    }
    assert data.interactions.frame["timestamp"].to_list() == [day, day + 3]
    with pytest.raises(DataError, match=r"The filters leave none of 6.*Loosen data\.since"):
        prepare_rows(rows, since="2020-01-01")


def test_source_without_path() -> None:
    with pytest.raises(ConfigError, match=r"needs exactly one \*\.inter .*data\.path=FOLDER"):
        find_input_files(DataConfig(source="recbole"))


def test_movielens_100k_without_path_uses_the_downloaded_copy(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_dataset("movielens-100k", folder="ml-100k")
    files = find_input_files(DataConfig(download_dir=tmp_path))
    assert files == (folder / "u.data", folder / "u.item")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source=netflix", "Unknown data source 'netflix'"),
        ("min_user_interactions=0", "min_user_interactions"),
        ("min_item_interactions=-1", "min_item_interactions"),
        ("min_weight=.nan", "min_weight"),
        ("max_malformed_share=1.5", "max_malformed_share"),
        ("min_users=3", "unknown key"),
    ],
)
def test_settings_that_cannot_be_used(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(DataConfig, overrides=[override])


def test_real_beauty(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    data = prepare(DataConfig(source="amazon2014/Beauty", path=real_data("amazon2014-beauty")))
    sizes = (data.interactions.num_users, data.interactions.num_items, len(data.interactions))
    assert sizes == (22_363, 12_101, 198_502)
    assert len(data.split.target_users("test")) == 22_363
    assert steps(data, "counted")["items titled by their id"] == 7
    data.save(tmp_path)
    assert PreparedData.load(tmp_path).interactions.frame.equals(data.interactions.frame)


def test_real_latest_small(real_data: Callable[[str], Path]) -> None:
    data = prepare(DataConfig(source=NAME, path=real_data("ml-latest-small")))
    sizes = (data.interactions.num_users, data.interactions.num_items, len(data.interactions))
    assert sizes == (610, 3650, 90_274)


def test_items_held_out_are_in_no_training_part(
    prepare_rows: Callable[..., PreparedData], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", str(item), 3, time)
        for user in range(40)
        for time, item in enumerate(rng.choice(20, 8, replace=False))
    ]
    whole = prepare_rows(rows)
    data = prepare_rows(rows, cold_item_share=0.25, cold_item_seed=3)
    counts = data.split.train_item_counts()
    assert (counts == 0).sum() == 5
    assert data.items.item_ids.equals(whole.items.item_ids), "the catalogue keeps them"
    assert len(data.interactions) == len(whole.interactions)
    users = data.split.target_users("test")
    assert (counts[data.split.targets("test", users)] == 0).any(), "they stay targets"
    told = steps(data, "counted")
    assert told["items held out of training"] == 5
    gone = len(whole.split.items) - len(data.split.items)
    assert told["training interactions held out with them"] == gone > 0
    (tmp_path / "saved").mkdir()
    data.save(tmp_path / "saved")
    loaded = PreparedData.load(tmp_path / "saved")
    assert np.array_equal(loaded.split.items, data.split.items)


def test_a_user_whose_history_is_held_out_is_not_a_test_user(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    # Each user has three items, one in each period.
    rows = [
        (f"u{user}", str((7 * user + period) % 20), 3, 1000 * period + user)
        for user in range(40)
        for period in range(3)
    ]
    settings = {"split": "temporal", "valid_share": 0.3, "test_share": 0.3}
    whole = prepare_rows(rows, **settings)
    data = prepare_rows(rows, **settings, cold_item_share=0.5)
    num_users = len(data.split.target_users("test"))
    assert num_users < len(whole.split.target_users("test")), "the case is not what it seems"
    assert steps(data, "counted")["users with a test target"] == num_users


def test_shuffled_ties_change_nothing_but_their_order(
    prepare_rows: Callable[..., PreparedData],
) -> None:
    # There are three items a day for five days. Items of one day are in the order of the file.
    rows = [
        (f"u{user}", str(10 * day + item), 3, day)
        for user in range(30)
        for day in range(5)
        for item in range(3)
    ]
    whole = prepare_rows(rows)
    first, again, other = (
        prepare_rows(rows, ties="shuffle", tie_seed=seed).interactions for seed in (1, 1, 2)
    )
    assert first.frame.equals(again.frame)
    assert not first.frame.equals(other.frame)
    assert first.item_ids.equals(whole.interactions.item_ids)
    assert first.user_ids.equals(whole.interactions.user_ids)
    assert first.frame.drop("item_idx").equals(whole.interactions.frame.drop("item_idx"))
    everything = ["user_idx", "timestamp", "item_idx"]
    assert first.frame.sort(everything).equals(whole.interactions.frame.sort(everything))
    last = first.frame.group_by("user_idx", maintain_order=True).last()["item_idx"]
    assert last.n_unique() == 3, "any item of the last day can be the target"
