"""Run two nightly batches, one after the other, from the bundle of the tiny run."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from recgrit.config import load_config
from recgrit.errors import ArtifactError, ConfigError
from recgrit.ranking import recommend_shards
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle

FILE = Path(__file__).parents[2] / "pipelines" / "nightly_batch.py"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nightly_batch", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nightly_batch"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def first(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(Run(tiny_run.directory), tmp_path_factory.mktemp("nights") / "first")


@pytest.fixture
def night(pipeline: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    def run(bundle: Path, out: str, **settings: Path | str) -> Path:
        values: dict[str, Path | str] = {"bundle": bundle, "out": tmp_path / out, **settings}
        overrides = [f"{key}={value}" for key, value in values.items()]
        found = pipeline.main(load_config(pipeline.NightConfig, None, overrides))
        assert isinstance(found, Path)
        return found

    return run


def test_two_nights(
    first: Bundle,
    tiny_run: Any,
    night: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(recommend_shards.__kwdefaults__, "shard_users", 7)
    taken = Run(tiny_run.directory).data.interactions.to_polars()
    histories, items, gone = tmp_path / "h.parquet", tmp_path / "i.csv", tmp_path / "gone.txt"
    taken.select("user_id", "item_id", "timestamp").sample(
        fraction=1, shuffle=True, seed=0
    ).write_parquet(histories)
    items.write_text("item_id,title,genres\nn1,Star Robot,Sci-Fi\nn2,Wedding,Romance\n1,x,y\n")
    gone.write_text("5\n")
    one = night(first.directory, "one", items=items, removed=gone, histories=histories)
    lists = pl.read_parquet(one / "recommendations.parquet")
    assert lists.columns == [
        "user_id",
        "rank",
        "item_id",
        "title",
        "semantic_id",
        "score",
        "source",
    ]
    assert lists.height == 600
    assert set(lists["user_id"]) == set(taken["user_id"])
    assert "5" not in lists["item_id"].to_list()
    bundle = Bundle(one / "bundle")
    assert bundle.parent == first.fingerprint
    assert bundle.manifest.summary["num_added"] == 2
    # The lists equal those of single requests, whatever the order of rows and the shards.
    user = lists["user_id"][0]
    history = taken.filter(user_id=user).sort("timestamp", maintain_order=True)["item_id"]
    alone = bundle.recommend_after({user: history.to_list()})
    assert lists.filter(user_id=user)["item_id"].to_list() == alone["item_id"].to_list()

    # In the second night, a user has interacted with a new item, and the removed item is offered
    # again.
    more = pl.DataFrame({"user_id": ["new"], "item_id": ["n1"], "timestamp": [9]})
    pl.concat(
        [taken.select(more.columns), more.cast(dict(taken.select(more.columns).schema))]
    ).write_parquet(histories)
    items.write_text("item_id,title,genres\nn3,Star Robot,Sci-Fi\n5,Heart,Romance\n")
    gone.write_text("n2\n")
    two = night(one / "bundle", "two", items=items, removed=gone, histories=histories)
    lists = pl.read_parquet(two / "recommendations.parquet")
    assert lists["user_id"].n_unique() == 61
    assert not {"5", "n2"} & set(lists["item_id"])
    assert lists.filter(user_id="new").height == 10
    after = Bundle(two / "bundle")
    assert [a.fingerprint for a in after.settings.ancestors] == [
        first.fingerprint,
        bundle.fingerprint,
    ]
    for item in bundle.semantic_ids.item_ids:
        assert after.semantic_ids.codes_of(item) == bundle.semantic_ids.codes_of(item)
    assert not list(tmp_path.rglob(".*partial*"))


def test_a_night_without_catalogue_changes_adds_no_items(
    first: Bundle, night: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "h.csv").write_text("user_id,item_id,timestamp\na,1,1\n")
    out = night(first.directory, "out", histories=tmp_path / "h.csv")
    assert len(Bundle(out / "bundle").semantic_ids) == 40
    with pytest.raises(ArtifactError, match="No bundle"):
        night(tmp_path, "out", histories=tmp_path / "h.csv")


def test_nights_that_train_on(
    first: Bundle, tiny_run: Any, night: Callable[..., Path], tmp_path: Path
) -> None:
    """Over two nights all IDs stay, removed items stay removed, and new items are recommended."""
    items, gone, histories = tmp_path / "i.csv", tmp_path / "gone.txt", tmp_path / "h.csv"
    items.write_text("item_id,title,genres\nn1,Star Robot,Sci-Fi\n")
    gone.write_text("5\n")
    histories.write_text("user_id,item_id,timestamp\na,1,1\nb,n1,1\n")
    today = {"items": items, "histories": histories, "train": tiny_run.directory / "config.yaml"}
    settings = "[retriever.epochs=1, tracking.backend=none]"
    one = night(first.directory, "one", **today, removed=gone, settings=settings)
    items.write_text("item_id,title,genres\nn2,Wedding,Romance\n5,Heart,Romance\n")
    two = night(one / "bundle", "two", **today, settings=settings)
    bundles = [first, Bundle(one / "bundle"), Bundle(two / "bundle")]
    for before, after in itertools.pairwise(bundles):
        for item in before.semantic_ids.item_ids:
            assert after.semantic_ids.codes_of(item) == before.semantic_ids.codes_of(item)
    assert {"n1", "n2"} <= {*bundles[2].semantic_ids.item_ids}
    assert [len(bundle.settings.ancestors) for bundle in bundles] == [0, 2, 4]
    assert bundles[2].settings.ancestors[1].fingerprint == Bundle(one / "trained").fingerprint
    weights = [bundle.manifest.files["model/weights.safetensors"] for bundle in bundles]
    assert len({record.sha256 for record in weights}) == 3
    lists = pl.read_parquet(two / "recommendations.parquet")
    assert {*lists["user_id"]} == {"a", "b"}
    assert "5" not in lists["item_id"].to_list()
    with pytest.raises(ConfigError, match="name it with train=FILE"):
        night(first.directory, "three", histories=histories, settings=settings)


def test_as_a_script(first: Bundle, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("user_id,item_id,timestamp\na,1,1\n")
    settings = [f"bundle={first.directory}", f"histories={tmp_path / 'h.csv'}"]
    done = subprocess.run(
        [sys.executable, str(FILE), *settings, f"out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "out")
    assert "10 rows for 1 users" in done.stderr
