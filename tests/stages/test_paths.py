"""For every path setting, stages depend on the content of files and not on their location."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import polars as pl
import pytest

from recgrit.config import Config, load_config
from recgrit.embedding.encoders import ENCODERS
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.stages import plan_stages

Command = Callable[..., Any]

# The file or folder of each input setting, and the first stage whose result depends on it.
INPUTS = {
    "data.path": ("log", "prepare"),
    "data.table.items_path": ("films.csv", "prepare"),
    "embedding.vectors_path": ("vectors.parquet", "embed"),
    "features.blocks.image.path": ("images.parquet", "embed"),
    "tokenizer.semantic_ids_path": ("ids.json", "tokenize"),
    "recommendation.allowed_items": ("allowed.txt", "recommend"),
    "recommendation.blocked_items": ("blocked.txt", "recommend"),
}
# Settings of places for storage or downloads. No result depends on them.
PLACES = {
    "run.cache_dir": "cache",
    "data.download_dir": "downloads",
    "data.mirrors": "[http://127.0.0.1:9/files]",
    "tracking.uri": "sqlite:///elsewhere.db",
}
# Settings with their own tests. That of users is in tests/data/sources/test_user_table.py.
OTHERS = {
    "data.table.users_path",
    "run.dir",
    "embedding.model",
    "features.blocks.image.folder",
    "features.blocks.image.model",
    "retriever.init_from",
}
# Settings that name a place but have the type of a text.
TEXTS = {"embedding.model", "features.blocks.image.model", "data.mirrors", "tracking.uri"}


def find_paths(config: type[Config], prefix: str = "") -> Iterator[str]:
    """Return the dotted names of all path settings, including those of nested sections."""

    def parts(annotation: Any) -> Iterator[Any]:
        yield annotation
        for part in get_args(annotation):
            yield from parts(part)

    for name, field in config.model_fields.items():
        for part in parts(field.annotation):
            if part is Path:
                yield f"{prefix}{name}"
            elif isinstance(part, type) and issubclass(part, Config):
                named = f"{name}.image" if get_origin(field.annotation) is dict else name
                yield from find_paths(part, f"{prefix}{named}.")


def test_every_path_among_the_settings_has_a_case() -> None:
    assert set(find_paths(ExperimentConfig)) | TEXTS == {*INPUTS, *PLACES, *OTHERS}


@pytest.fixture(scope="module")
def made(
    write_config: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Make a folder with inputs of all kinds and the run that was made from them."""
    folder = tmp_path_factory.mktemp("made")
    draw = np.random.default_rng(0)
    items = [f"i{number:02d}" for number in range(40)]
    (folder / "log").mkdir()
    starts = draw.integers(0, 40, 60)
    rows = [
        {"user_id": f"u{user}", "item_id": items[(start + 4 * step) % 40], "timestamp": step}
        for user, start in enumerate(starts.tolist())
        for step in range(12)
    ]
    pl.DataFrame(rows).write_parquet(folder / "log" / "clicks.parquet")
    films = pl.DataFrame({"item_id": items, "title": [f"Film {item}" for item in items]})
    films.write_csv(folder / "films.csv")
    vectors = draw.normal(size=(40, 12)).astype(np.float32)
    pl.DataFrame({"item_id": items, "vector": vectors}).write_parquet(folder / "vectors.parquet")
    images = draw.normal(size=(30, 5)).astype(np.float32)
    frame = pl.DataFrame({"item_id": items[:30], "vector": images})
    frame.write_parquet(folder / "images.parquet")
    ids = {item: [f"<a_{i % 8}>", f"<b_{i // 8}>"] for i, item in enumerate(items)}
    (folder / "ids.json").write_text(json.dumps(ids))
    (folder / "allowed.txt").write_text("\n".join(items[:30]))
    (folder / "blocked.txt").write_text(items[0])
    config = write_config(
        folder / "all.yaml",
        folder / "log",
        folder / "runs" / "all",
        data={"source": "table", "table": {"items_path": str(folder / "films.csv")}},
        embedding={"encoder": "vectors", "vectors_path": str(folder / "vectors.parquet")},
        features={"blocks": {"image": {"path": str(folder / "images.parquet")}}},
        tokenizer={"semantic_ids_path": str(folder / "ids.json")},
        retriever={"epochs": 1},
        evaluation={"baselines": ["popularity"], "exact_users": 0},
        recommendation={
            "allowed_items": str(folder / "allowed.txt"),
            "blocked_items": str(folder / "blocked.txt"),
        },
    )
    run_experiment(load_config(ExperimentConfig, config))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the folder for changes by a test, and make the copy the working folder."""
    copy = Path(shutil.copytree(made, tmp_path / "place"))
    monkeypatch.chdir(copy)
    return copy


def load(place: Path, *overrides: str) -> ExperimentConfig:
    """Load the run in a folder. All its settings still name the first folder."""
    run = f"run.dir={place / 'runs' / 'all'}"
    return load_config(ExperimentConfig, place / "runs" / "all" / "config.yaml", [run, *overrides])


def redone(config: ExperimentConfig) -> list[str]:
    """Return the names of the stages that would run again."""
    return [
        stage.name for stage in plan_stages(config, "recommend") if not stage.is_current(config)
    ]


def test_a_run_in_another_folder_is_up_to_date(place: Path) -> None:
    for directory in (place / "runs" / "all", Path("runs/all"), Path("runs/../runs/all")):
        assert redone(load(place, f"run.dir={directory}")) == []
    (place / "runs" / "all").rename(place / "renamed")
    assert redone(load_config(ExperimentConfig, "renamed/config.yaml", ["run.dir=renamed"])) == []


@pytest.mark.parametrize("setting", INPUTS)
def test_the_same_content_elsewhere_is_the_same(place: Path, setting: str) -> None:
    name, _ = INPUTS[setting]
    assert redone(load(place, f"{setting}={place / name}")) == []
    assert redone(load(place, f"{setting}={name}")) == [], "relative"
    assert redone(load(place, f"{setting}=./runs/../{name}")) == []
    moved = (place / name).rename(place / f"renamed{Path(name).suffix}")
    assert redone(load(place, f"{setting}={moved}")) == [], "under another name"
    config = load(place, f"{setting}={moved.name}")
    result = run_experiment(config)
    assert result.up_to_date == list(result.artifacts)


@pytest.mark.parametrize("setting", INPUTS)
def test_changed_content_is_read_again(place: Path, setting: str) -> None:
    name, stage = INPUTS[setting]
    path = place / name
    if name == "log":
        path = path / "clicks.parquet"
    if path.suffix == ".parquet":
        pl.read_parquet(path).reverse().write_parquet(path)
    else:
        path.write_text(path.read_text().replace("i07", "i39", 1).replace("i00", "i08"))
    assert redone(load(place, f"{setting}={place / name}")) == [stage]


def test_swapping_allowed_and_blocked_items_redoes_the_lists(place: Path) -> None:
    swapped = ("allowed_items=blocked.txt", "blocked_items=allowed.txt")
    assert redone(load(place, *(f"recommendation.{one}" for one in swapped))) == ["recommend"]
    assert redone(load(place, "recommendation.blocked_items=null")) == ["recommend"]


@pytest.mark.parametrize("setting", PLACES)
def test_changed_storage_settings_redo_nothing(place: Path, setting: str) -> None:
    assert redone(load(place, f"{setting}={PLACES[setting]}")) == []


def test_equal_files_in_the_download_folder_are_up_to_date(
    new_config: Callable[..., Path], tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(ExperimentConfig, new_config())
    run_experiment(config, until="prepare")
    shutil.copytree(tiny_data, tmp_path / "downloads" / "ml-100k")
    fetched = ["data.path=null", f"data.download_dir={tmp_path / 'downloads'}"]
    again = run_experiment(load_config(ExperimentConfig, new_config(), fetched), until="prepare")
    assert again.up_to_date == ["prepare"]


def test_an_encoder_in_a_folder_is_identified_by_its_weights(
    new_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lengths:
        name, fingerprint = "lengths", "one"

        def encode(self, texts: list[str]) -> Any:
            lengths = np.array([[len(text), 1.0] for text in texts], np.float32)
            return lengths / np.linalg.norm(lengths, axis=1, keepdims=True)

    monkeypatch.setitem(ENCODERS, "minilm", lambda config, seed: Lengths())
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    path = new_config(embedding={"encoder": "minilm"})

    def up_to_date(model: Path | str) -> list[str]:
        config = load_config(ExperimentConfig, path, [f"embedding.model={model}"])
        return run_experiment(config, until="embed").up_to_date

    assert up_to_date(folder) == []
    assert up_to_date("encoder") == ["prepare", "embed"]
    folder.rename(tmp_path / "renamed")
    assert up_to_date(tmp_path / "renamed") == ["prepare", "embed"]
    (tmp_path / "renamed" / "model.safetensors").write_text("other weights")
    assert up_to_date("renamed") == ["prepare"]


def test_a_run_resumes_from_any_working_folder(
    made: Path, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths in the settings are resolved, so a run resumes from any working folder."""
    (place / "my.yaml").write_text((place / "all.yaml").read_text().replace(f"{made}/", ""))
    assert str(made) not in (place / "my.yaml").read_text()
    done = command("run", "my.yaml", "--json")
    assert done.code == 0, done.err
    assert done.json()["up_to_date"] == list(done.json()["artifacts"])
    monkeypatch.chdir("/")
    done = command("evaluate", place / "runs" / "all", "--json")
    assert done.code == 0, done.err
    assert done.json()["up_to_date"] == list(done.json()["artifacts"])
