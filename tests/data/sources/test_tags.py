from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recgrit.config import load_config
from recgrit.data.config import DataConfig
from recgrit.data.items import ItemTable
from recgrit.data.prepare import prepare
from recgrit.data.sources import load_source
from recgrit.data.sources.tags import with_tags
from recgrit.embedding.text import build_item_texts
from recgrit.errors import ConfigError, DataError

TAGS = [
    ("1", "10", "Pixar", 5),
    ("2", "10", "pixar", 6),
    ("1", "10", "fun", 7),
    ("1", "10", "fun", 8),
    ("3", "10", 'toys, "talking"', 9),
    ("3", "20", "sad&amp;slow", 9),
    ("3", "99", "nowhere", 9),
]


def write_tags(folder: Path, name: str = "tags.csv") -> Path:
    if name == "tags.csv":
        lines = ["userId,movieId,tag,timestamp"]
        for user, item, tag, time in TAGS:
            lines.append(f'{user},{item},"{tag.replace(chr(34), chr(34) * 2)}",{time}')
    else:
        lines = ["::".join(map(str, row)) for row in TAGS]
    (folder / name).write_bytes("\r\n".join([*lines, ""]).encode())
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [("movielens-latest-small", "tags.csv"), ("movielens-10m", "tags.dat")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_most_given_tags_come_first(
    write_dataset: Callable[..., Path], tmp_path: Path, name: str, file: str, packed: bool
) -> None:
    written = "movielens-1m" if name == "movielens-10m" else name
    folder = write_tags(write_dataset(written), file)
    source = load_source(name)
    if packed:
        with zipfile.ZipFile(tmp_path / source.archive, "w") as stream:  # type: ignore[attr-defined]
            for path in folder.iterdir():
                stream.write(path, f"inside/{path.name}")
                path.unlink()
        folder = tmp_path
    tagged = with_tags(source, name, 2)
    raw = tagged.read(tagged.find_files(folder))
    assert dict(raw.items.select("item_id", "tags").iter_rows()) == {
        "10": ["pixar", "fun"],
        "20": ["sad&slow"],
        "30": None,
    }
    text = build_item_texts(ItemTable(raw.items.fill_null("30")))
    assert text[0].endswith("Tags: pixar, fun.")
    assert "Tags" not in text[2]


def test_one_setting_adds_the_tags(write_dataset: Callable[..., Path]) -> None:
    folder = write_tags(write_dataset("movielens-latest-small"))
    settings = {"min_user_interactions": 1, "min_item_interactions": 1, "path": folder}
    config = DataConfig(source="movielens-latest-small", movie_tags=5, **settings)  # type: ignore[arg-type]
    tags = dict(prepare(config).items.frame.select("item_id", "tags").iter_rows())
    assert tags["10"] == ["pixar", "fun", 'toys, "talking"']
    plain = config.model_copy(update={"movie_tags": 0})
    assert "tags" not in prepare(plain).items.frame.columns


@pytest.mark.parametrize("name", ["movielens-100k", "movielens-1m", "recbole", "amazon2014/Beauty"])
def test_sources_without_tags_refuse_the_setting(name: str, tmp_path: Path) -> None:
    config = load_config(DataConfig, overrides=[f"source={name}", "movie_tags=3"])
    with pytest.raises(ConfigError, match=f"{name} has no tags.*from movielens-10m on"):
        prepare(config)


def test_missing_files_and_malformed_lines_are_refused(
    write_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    source = with_tags(load_source("movielens-latest-small"), "movielens-latest-small", 2)
    folder = write_dataset("movielens-latest-small")
    with pytest.raises(DataError, match=r"expected ratings\.csv, movies\.csv and tags\.csv, or"):
        source.find_files(folder)
    path = write_tags(folder) / "tags.csv"
    path.write_bytes(path.read_bytes() + b"1,2\r\n,5,x,1\r\n")
    with pytest.raises(DataError, match=r"tags\.csv: 2 of 9 lines are malformed.*line 9, 10"):
        source.read(source.find_files(folder))
    assert source.read(source.find_files(folder), max_malformed_share=0.5).items.height == 3
    assert "tags.csv: 2 of 9 lines hold no tag" in caplog.text
