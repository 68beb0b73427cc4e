"""Any number of partitions gives the same artifact. Partitions on disk need less memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.config import load_config
from recgrit.data.config import DataConfig
from recgrit.data.interactions import Interactions
from recgrit.data.prepare import PreparedData, prepare
from recgrit.errors import ArtifactError, DataError, ReplacedError
from recgrit.experiment import ExperimentConfig
from recgrit.stages.prepare import PREPARE

ML, SHOP = "movielens-latest-small", "amazon2023/All_Beauty"
FILES = {
    "funnel.parquet",
    "interactions.parquet",
    "item_ids.parquet",
    "items.parquet",
    "sequence_items.npy",
    "sequence_offsets.npy",
    "sequence_splits.npy",
    "users.parquet",
}
TITLED = "uvwx"
Outcome = dict[str, bytes] | str


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def outcome(source: str, path: Path, **values: Any) -> Outcome:
    """Return the bytes of all files of the artifact, or the error message."""
    try:
        data = prepare(DataConfig.model_validate({"source": source, "path": path} | values))
    except DataError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as name:
        data.save(Path(name))
        found = {file.name: file.read_bytes() for file in Path(name).iterdir()}
    assert {*found} >= FILES
    return found


def draw_rows(
    *, num: int = 3000, users: int = 150, seed: int = 0
) -> list[tuple[str, str, int, int]]:
    """Draw unsorted rows with duplicates, ties, repeats, rare users and items, and text ids."""
    draw = np.random.default_rng(seed)
    names = draw.permutation(users)
    rows = [
        (f"u{names[user]}", f"i{item}", int(rating), int(time))
        for user, item, rating, time in zip(
            (users * draw.random(num) ** 2).astype(int),
            (200 * draw.random(num) ** 2).astype(int),
            draw.integers(1, 6, num),
            86_400 * draw.integers(0, 90, num),
            strict=True,
        )
    ]
    return rows + [rows[place] for place in draw.integers(0, num, num // 20)]


@pytest.mark.parametrize("partition_users", [1, 7, 10**9])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"min_weight": 3, "min_user_interactions": 3, "min_item_interactions": 2},
        {"repeats": "first", "since": "1970-01-10", "until": "1970-03-01"},
        {"repeats": "last", "min_item_interactions": 12},
        {"cold_item_share": 0.3, "cold_item_seed": 2},
        {"split": "temporal"},
        {"split": "temporal", "valid_share": 0.2, "test_share": 0.3, "cold_item_share": 0.2},
        {"min_user_interactions": 1, "min_item_interactions": 1},
    ],
    ids=str,
)
def test_partitions_change_no_artifact(
    write_dataset: Callable[..., Path], values: dict[str, Any], partition_users: int
) -> None:
    path = write_dataset(ML, draw_rows())
    in_memory = outcome(ML, path, **values)
    assert isinstance(in_memory, dict)
    assert outcome(ML, path, partition_users=partition_users, **values) == in_memory


@pytest.mark.parametrize(
    "name",
    [
        "movielens-100k",
        "movielens-100k as atomic files",
        "recbole",
        "movielens-1m",
        "amazon2014/Beauty",
        "amazon2014/Beauty as ratings",
        "amazon2018/Gift_Cards",
        "amazon2023/All_Beauty",
        "amazon2023/All_Beauty as splits",
    ],
)
def test_partitions_change_no_artifact_of_any_format(
    write_dataset: Callable[..., Path], name: str
) -> None:
    rows = [(user[1:], item[1:], *rest) for user, item, *rest in draw_rows(num=1500)]
    path, source = write_dataset(name, rows), name.partition(" as ")[0]
    in_memory = outcome(source, path)
    assert isinstance(in_memory, dict)
    assert outcome(source, path, partition_users=20) == in_memory


def test_partitions_change_no_filter_by_titles(write_dataset: Callable[..., Path]) -> None:
    rows = [(f"{user}", f"{10 * item}", 3, user + item) for user in range(9) for item in (1, 2, 3)]
    path = write_dataset(ML, rows)
    values = {"min_user_interactions": 1, "min_title_length": 2, "max_title_words": 2}
    in_memory = outcome(ML, path, **values)
    assert isinstance(in_memory, dict)
    assert outcome(ML, path, partition_users=2, **values) == in_memory


@pytest.mark.parametrize("weight", [None, "stars"])
def test_partitions_change_no_table_in_shards(tmp_path: Path, weight: str | None) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    rows = pl.DataFrame(
        draw_rows(), schema=["user_id", "item_id", "stars", "timestamp"], orient="row"
    )
    # The times are in milliseconds, because each shard is sorted before its times become seconds.
    rows = rows.with_columns(1000 * pl.col("timestamp") + pl.int_range(pl.len()) * 7919 % 1000)
    for place in range(4):
        rows[place * 800 : (place + 1) * 800].write_parquet(folder / f"{place}.parquet")
    values = {"table": {"time_unit": "ms", "weight": weight}, "repeats": "last"}
    in_memory = outcome("table", folder, **values)
    assert isinstance(in_memory, dict)
    assert outcome("table", folder, partition_users=11, **values) == in_memory


def test_real_files(real_data: Callable[[str], Path]) -> None:
    for source, folder in (
        (ML, "ml-latest-small"),
        ("amazon2014/Beauty", "amazon2014-beauty"),
        ("amazon2018/Gift_Cards", "amazon2018-gift-cards"),
    ):
        path = real_data(folder)
        in_memory = outcome(source, path)
        assert isinstance(in_memory, dict)
        assert outcome(source, path, partition_users=1000) == in_memory


# Times are compared and sorted in their own unit before they become seconds.
milliseconds = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from("uvwxyz"),
        st.sampled_from([1.0, 3.0, 5.0]),
        st.integers(-2500, 2500) | st.sampled_from([0.25, 0.75, 1999.5]),
    ),
    min_size=1,
    max_size=60,
)


def write_shop(folder: Path, files: Sequence[Sequence[tuple[Any, ...]]], *, rated: bool) -> Path:
    names = ["user_id", "parent_asin", *(["rating"] if rated else []), "timestamp"]
    for part, rows in zip(("train", "valid", "test"), files, strict=False):
        lines = [",".join(names)]
        for user, item, rating, time in rows:
            lines.append(",".join(map(str, [user, item, *([rating] if rated else []), time])))
        name = f"All_Beauty.{part}.csv.gz" if len(files) == 3 else "All_Beauty.csv.gz"
        (folder / name).write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    described = [json.dumps({"parent_asin": item, "title": f"Item {item}"}) for item in TITLED]
    (folder / "meta_All_Beauty.jsonl.gz").write_bytes(gzip.compress("\n".join(described).encode()))
    return folder


@settings(max_examples=40, deadline=None)
@given(
    st.lists(milliseconds, min_size=3, max_size=3) | st.lists(milliseconds, min_size=1, max_size=1),
    st.booleans(),
    st.integers(1, 4),
    st.fixed_dictionaries(
        {
            "min_user_interactions": st.integers(1, 3),
            "min_item_interactions": st.integers(1, 3),
            "repeats": st.sampled_from(["keep", "first", "last"]),
            "min_weight": st.sampled_from([None, 2, 6]),
            "split": st.sampled_from(["leave_one_out", "temporal"]),
            "cold_item_share": st.sampled_from([0, 0.4]),
            "min_title_length": st.sampled_from([0, 1]),
        }
    ),
)
def test_partitions_change_no_artifact_for_any_rows_and_settings(
    files: list[list[tuple[Any, ...]]], rated: bool, partition_users: int, values: dict[str, Any]
) -> None:
    if not rated:
        values["min_weight"] = None
    with tempfile.TemporaryDirectory() as name:
        path = write_shop(Path(name), files, rated=rated)
        in_memory = outcome(SHOP, path, **values)
        assert outcome(SHOP, path, partition_users=partition_users, **values) == in_memory
    expected = prepare_plainly(files, values)
    if isinstance(in_memory, str):
        assert expected == [] or "all have the same time" in in_memory
        return
    users, items, frame = (
        pl.read_parquet(io.BytesIO(in_memory[f"{name}.parquet"]))
        for name in ("users", "item_ids", "interactions")
    )
    assert [
        (users["user_id"][user], items["item_id"][item], *rest)
        for user, item, *rest in frame.rows()
    ] == [row if rated else row[:3] for row in expected]


def prepare_plainly(
    files: Sequence[Sequence[tuple[Any, ...]]], values: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """Filter and sort rows of user, item, time and rating in plain Python."""
    rows = [(user, item, time, rating) for file in files for user, item, rating, time in file]
    events: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for row in rows:
        events.setdefault(row[:3], row)
    rows = [*events.values()]
    rows = [row for row in rows if row[3] >= (values["min_weight"] or 0)]
    if values["repeats"] != "keep":
        in_time = sorted(range(len(rows)), key=lambda place: rows[place][2])
        if values["repeats"] == "first":
            in_time.reverse()
        kept = {rows[place][:2]: place for place in in_time}.values()
        rows = [rows[place] for place in sorted(kept)]
    if values["min_title_length"]:
        rows = [row for row in rows if row[1] in TITLED]
    while True:
        left = [
            row
            for row in rows
            if sum(row[0] == other[0] for other in rows) >= values["min_user_interactions"]
            and sum(row[1] == other[1] for other in rows) >= values["min_item_interactions"]
        ]
        if len(left) == len(rows):
            break
        rows = left
    users = [*dict.fromkeys(row[0] for row in rows)]
    in_order = sorted(rows, key=lambda row: (users.index(row[0]), row[2]))
    return [(user, item, int(time // 1000), rating) for user, item, time, rating in in_order]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_weight": 9}, "the largest is 5"),
        ({"since": "2020-01-01"}, "The filters leave none of 3150 interactions"),
        ({"since": "2020-01-01", "min_weight": 2}, "The filters leave none of 3150 interactions"),
        ({"min_user_interactions": 5000}, "Lower data.min_user_interactions"),
    ],
)
def test_filters_that_leave_nothing_have_the_same_message(
    write_dataset: Callable[..., Path],
    temporary_files: Path,
    values: dict[str, Any],
    message: str,
) -> None:
    path = write_dataset(ML, draw_rows())
    found = outcome(ML, path, partition_users=10, **values)
    assert message in found
    assert found == outcome(ML, path, **values)
    assert [*temporary_files.iterdir()] == []


@pytest.mark.parametrize("values", [{"split": "minionerec"}, {"ties": "shuffle"}])
def test_what_needs_all_in_memory_is_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(
        ValueError, match=rf"set data\.partition_users=null, or choose .* data\.{name}"
    ):
        DataConfig.model_validate({"partition_users": 10} | values)


def test_partition_users_does_not_change_the_key() -> None:
    first, *others = (
        PREPARE.settings(load_config(ExperimentConfig, None, [f"data.partition_users={number}"]))
        for number in ("null", "10", "1000")
    )
    assert all(other == first for other in others)


def test_temporary_files_go_with_the_data(
    write_dataset: Callable[..., Path], temporary_files: Path, tmp_path: Path
) -> None:
    path = write_dataset(ML, draw_rows())
    data = prepare(DataConfig(source=ML, path=path, partition_users=10))
    (scratch,) = temporary_files.iterdir()
    held = {file.relative_to(scratch).parts[0] for file in scratch.rglob("*") if file.is_file()}
    assert held == {"prepared"}, "the partitions themselves are gone"
    (tmp_path / "saved").mkdir()
    data.save(tmp_path / "saved")
    frame, split = data.interactions.frame, data.split
    del data
    assert [*temporary_files.iterdir()] == []
    loaded = PreparedData.load(tmp_path / "saved")
    assert loaded.interactions.frame.equals(frame)
    assert np.array_equal(loaded.split.items, split.items)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_an_error(
    write_dataset: Callable[..., Path], temporary_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dataset(ML, draw_rows())
    write = Path.open

    def open_full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        full = temporary_files in self.parents and mode == "ab"
        return write(Path("/dev/full") if full else self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        prepare(DataConfig(source=ML, path=path, partition_users=10))
    assert [*temporary_files.iterdir()] == []


def test_ids_and_split_do_without_the_rows(
    write_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(DataConfig(source=ML, path=write_dataset(ML, draw_rows())))
    data.save(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the rows were read")

    with monkeypatch.context() as patch:
        patch.setattr(Interactions, "frame", property(refuse))
        loaded = PreparedData.load(tmp_path)
        assert len(loaded.interactions) == len(data.split.items)
        assert loaded.interactions.user_ids.equals(data.interactions.user_ids)
        assert loaded.split.target_users("test").size
    assert loaded.interactions.frame.equals(data.interactions.frame)


def test_damage_that_is_met_late_is_an_error(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    prepare(DataConfig(source=ML, path=write_dataset(ML, draw_rows()))).save(tmp_path)
    path = tmp_path / "interactions.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(100) + content[104:])
    loaded = PreparedData.load(tmp_path)
    with pytest.raises(ArtifactError, match=r"cannot be read because it is damaged"):
        _ = loaded.interactions.frame
    path.write_bytes(content)
    with pytest.raises(ReplacedError, match=r"interactions\.parquet was replaced since"):
        _ = loaded.interactions.frame


# The script does not use `resource.getrusage`, because a new process begins with the peak memory of
# its parent.
MEASURED = """
import sys
from pathlib import Path
from recgrit.data.prepare import prepare
from recgrit.data.config import DataConfig
from recgrit.data.sources import streaming
streaming.PARSED_BYTES = 2**20  # What a block of the file takes is the same in both.
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
path, out, users = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) or None
out.mkdir()
before = peak()
config = DataConfig(source="movielens-25m", path=path, partition_users=users)
prepare(config).save(out)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def many_ratings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write three million rows. The rows of each user are spread over the file."""
    folder = tmp_path_factory.mktemp("many")
    num, draw = 3_000_000, np.random.default_rng(0)
    pl.DataFrame(
        {
            "userId": draw.integers(1, 60_000, num),
            "movieId": draw.integers(1, 4_000, num),
            "rating": draw.integers(1, 6, num),
            "timestamp": draw.integers(10**9, 10**9 + 10**7, num),
        }
    ).write_csv(folder / "ratings.csv")
    (folder / "movies.csv").write_text("movieId,title,genres\n1,One (1995),Drama\n")
    yield folder
    (folder / "ratings.csv").unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of itself")
def test_memory_is_that_of_a_partition(many_ratings: Path, tmp_path: Path) -> None:
    def peak_mib(name: str, users: int) -> float:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, many_ratings, tmp_path / name, str(users)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "POLARS_MAX_THREADS": "1"},
        )
        return int(done.stdout) / 1024

    in_memory, in_partitions = peak_mib("whole", 0), peak_mib("parts", 4_000)
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert in_partitions < 0.7 * in_memory, (in_memory, in_partitions)
