"""A model in one file outside the package works in all commands, by its dotted path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.models.model import Model
from recgrit.models.registry import find_model
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from tests.models.contract import ModelContract

if TYPE_CHECKING:
    Command = Callable[..., Any]
    FinishedRun = Any

KIND = "outside_models.NextItem"
SOURCE = '''\
"""Ranks items by how often they follow the last one."""

import numpy as np
import torch
from pydantic import Field

from recgrit.config import Config
from recgrit.models.model import FitSummary, Fitted, Model
from recgrit.ranking import ScoreRanker


class NextItemConfig(Config):
    smoothing: float = Field(0.1, gt=0)


class NextItem(Model):
    settings_class = NextItemConfig

    def __init__(self, counts):
        self.counts = torch.from_numpy(counts)

    @classmethod
    def fit(cls, items, split, settings, *, seed, on_epoch=None, checkpoint=None):
        counts = np.full((split.num_items, split.num_items), settings.smoothing, np.float32)
        for user in range(split.num_users):
            history = split.train_sequence(user)
            np.add.at(counts, (history[:-1], history[1:]), 1)
        return Fitted(cls(counts), FitSummary({"counts": counts.size}))

    def save(self, directory):
        np.save(directory / "counts.npy", self.counts.numpy())

    @classmethod
    def load(cls, directory, items, settings):
        return cls(np.load(directory / "counts.npy"))

    def ranker(self, *, beam_width=None, allowed=None):
        score = lambda histories: self.counts[histories.take_last(histories.items)]
        return ScoreRanker(score, num_items=len(self.counts), history_length=1, allowed=allowed)
'''


@pytest.fixture(scope="module")
def outside_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the module to a folder, and put the folder on the import path of this process."""
    folder = tmp_path_factory.mktemp("own")
    assert len(SOURCE.splitlines()) <= 40, "one short file"
    (folder / "outside_models.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("outside_models", None)


class TestNextItem(ModelContract):
    """The contract tests also apply to models outside the package."""

    kind = KIND

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, outside_models: Path) -> type[Model]:
        return find_model(cls.kind)


@pytest.fixture(scope="module")
def own_run(
    outside_models: Path,
    tiny_data: Path,
    write_config: Callable[..., Path],
    run_command: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Any]:
    """Return a run of the model by the command, and the result of the command."""
    folder = tmp_path_factory.mktemp("own-run")
    config = write_config(folder / "own.yaml", tiny_data, folder / "runs" / "own")
    path = os.pathsep.join([str(outside_models), os.environ.get("PYTHONPATH", "")])
    settings = (f"model.kind={KIND}", "model.settings.smoothing=0.2")
    done = run_command("run", config, *settings, "--json", PYTHONPATH=path)
    assert done.code == 0, done.err
    return folder / "runs" / "own", done


def test_it_is_run_and_measured(own_run: tuple[Path, Any]) -> None:
    directory, done = own_run
    values = done.json()
    assert values["model"] == KIND
    # The stages of features and IDs are missing, because this model does not need them.
    baselines = ["baseline-popularity", "baseline-item_knn"]
    assert list(values["artifacts"]) == ["prepare", "train", *baselines, "evaluate", "recommend"]
    popularity = values["baselines"]["popularity"]
    assert values["test"]["ndcg_at_10"] > 1.5 * popularity["test"]["ndcg_at_10"]
    assert f"{KIND}, fitted without epochs" in done.err
    assert KIND in done.out
    run = Run(directory)
    assert run.manifest("train").config["settings"] == {"smoothing": 0.2}
    assert run.report("test").metrics() == values["test"]
    assert run.report("test").protocol["search"] == "all items scored"


def test_it_recommends(own_run: tuple[Path, Any], command: Command) -> None:
    directory, _ = own_run
    done = command("recommend", "--run", directory, "--user", "1", "-k", "3", "--json")
    assert done.code == 0, done.err
    rows = done.json()["recommendations"]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert list(rows[0]) == ["user_id", "rank", "item_id", "title", "score", "source"]
    assert rows[0]["title"] in done.out
    assert command("inspect", "run", "--run", directory).code == 0


def test_it_is_compared_with_others(
    own_run: tuple[Path, Any], tiny_run: FinishedRun, command: Command, tmp_path: Path
) -> None:
    out, both = tmp_path / "compare.html", (tiny_run.directory, own_run[0])
    done = command("compare", *both, "--out", out, "--json")
    assert done.code == 0, done.err
    assert KIND in out.read_text()
    table = command("compare", *both, "--markdown")
    assert table.code == 0, table.err
    scores, differences = [line for line in table.out.splitlines() if line.startswith("| own |")][
        :2
    ]
    assert "all items scored" in scores
    assert "NDCG@10" in differences or "Recall@10" in differences


def test_it_has_a_report(own_run: tuple[Path, Any], command: Command, tmp_path: Path) -> None:
    done = command("report", own_run[0], "--out", tmp_path / "report.html", "--json")
    assert done.code == 0, done.err
    assert KIND in (tmp_path / "report.html").read_text()


def test_its_bundle_recommends_what_the_run_does(
    own_run: tuple[Path, Any], command: Command, tmp_path: Path
) -> None:
    run, folder = Run(own_run[0]), tmp_path / "bundle"
    done = command("export", "bundle", "--run", run.directory, "--out", folder)
    assert done.code == 0, done.err
    histories = {user: run.history(user)["item_id"].to_list() for user in ("3", "17")}
    found = Bundle(folder).recommend_after(histories)
    assert found.drop("source").equals(run.recommend(["3", "17"]).drop("source"))
    (tmp_path / "h.csv").write_text("user_id,item_id\nme,7\n")
    asked = ("--histories", tmp_path / "h.csv", "--out", tmp_path / "lists.parquet", "--json")
    assert command("recommend", "--bundle", folder, *asked).json()["num_rows"] == 10
    gone = tmp_path / "gone.txt"
    gone.write_text("3\n")
    told = command("append", folder, "--out", tmp_path / "next", "--remove", gone).error_message()
    assert f"has the model {KIND}, which cannot rank items" in told


def test_it_can_be_the_baseline_of_another_model(
    outside_models: Path, new_config: Callable[..., Path]
) -> None:
    baselines = f"evaluation.baselines=[popularity,{KIND}]"
    config = load_config(ExperimentConfig, new_config(), ["model=item_knn", baselines])
    result = run_experiment(config)
    assert result.artifacts[f"baseline-{KIND}"] == config.run.dir / "baselines" / KIND
    measured = result.metrics()
    assert measured[f"{KIND}/test"]["ndcg_at_10"] > measured["popularity/test"]["ndcg_at_10"]
    recommender = Run(config.run.dir).recommender(KIND)
    assert recommender.recommend_after({"x": ["7"]}, top_k=4).height == 4


def test_a_change_of_its_code_trains_it_again(
    outside_models: Path, new_config: Callable[..., Path]
) -> None:
    baselines = f"evaluation.baselines=[popularity,{KIND}]"
    config = load_config(ExperimentConfig, new_config(), ["model=item_knn", baselines])
    run_experiment(config)
    module = outside_models / "outside_models.py"
    before = module.read_text()
    try:
        module.write_text(f"{before}# Another version.\n")
        result = run_experiment(config)
    finally:
        module.write_text(before)
    redone = [name for name in result.artifacts if name not in result.up_to_date]
    assert redone == [f"baseline-{KIND}", "evaluate"]


@pytest.mark.parametrize(
    ("settings", "phrases"),
    [
        (
            ["model.settings.smooth=1"],
            ("do not fit outside_models.NextItem: smooth", "not permitted"),
        ),
        (["model.settings.smoothing=0"], ("smoothing", "greater than 0")),
        (
            ["model.kind=outside_models.Next"],
            ("Cannot import the model outside_models.Next", "PYTHONPATH"),
        ),
        (["model.kind=own_model.NextItem"], ("Cannot import", "No module named 'own_model'")),
        (
            ["model.kind=outside_models.NextItemConfig"],
            ("is not a model", "recgrit.models.model.Model"),
        ),
        (["model.kind=sasrek"], ("No model 'sasrek'", "Did you mean sasrec?", "package.module")),
        (
            ["model.kind=trie", "model.settings.epochs=1"],
            ("has its settings in the section retriever",),
        ),
        (["evaluation.baselines=[popularty]"], ("Did you mean popularity?",)),
    ],
)
def test_custom_models_that_cannot_be_used_are_refused(
    outside_models: Path,
    new_config: Callable[..., Path],
    command: Command,
    tmp_path: Path,
    settings: list[str],
    phrases: tuple[str, ...],
) -> None:
    told = command("run", new_config(), f"model.kind={KIND}", *settings).error_message()
    for phrase in phrases:
        assert phrase in told
    assert not (tmp_path / "runs").exists()
