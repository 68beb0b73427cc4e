"""A stage runs again if its version changes, or if an older recgrit wrote its artifact."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recgrit import stages
from recgrit.experiment import ExperimentConfig
from recgrit.manifests import read_manifest
from recgrit.pipeline import run_experiment
from recgrit.stages.stage import Stage
from recgrit.stages.train import train_stage

Command = Callable[..., Any]


def raised(stage: Stage) -> Stage:
    return dataclasses.replace(stage, version=stage.version + 1)


def test_a_raised_version_redoes_the_stage_and_what_is_built_from_it(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig.load(copied_run)
    assert len(run_experiment(config).up_to_date) == 8
    before = read_manifest(copied_run / "semantic_ids")
    prepare, embed, tokenize = stages.BEFORE_TRAINING
    monkeypatch.setattr(stages, "BEFORE_TRAINING", (prepare, embed, raised(tokenize)))
    result = run_experiment(config)
    kept = ["prepare", "embed", "baseline-popularity", "baseline-item_knn"]
    assert result.up_to_date == kept
    after = read_manifest(copied_run / "semantic_ids")
    assert after.version == before.version + 1
    assert after.files == before.files, "even if nothing else comes out"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_stage", {"train", "evaluate", "recommend"}),
        ("evaluate_stage", {"evaluate"}),
        ("RECOMMEND", {"recommend"}),
    ],
)
def test_each_stage_has_a_version_of_its_own(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: set[str]
) -> None:
    found = getattr(stages, name)
    new = raised(found) if isinstance(found, Stage) else lambda config: raised(found(config))
    monkeypatch.setattr(stages, name, new)
    result = run_experiment(ExperimentConfig.load(copied_run))
    assert set(result.artifacts) - set(result.up_to_date) == expected


def test_the_train_stage_has_the_parents_that_its_model_needs(copied_run: Path) -> None:
    config = ExperimentConfig.load(copied_run)
    assert train_stage(config).parents == ("prepare", "embed", "tokenize")
    other = config.model_copy(
        update={"model": config.model.model_copy(update={"kind": "item_knn"})}
    )
    assert train_stage(other).parents == ("prepare",)


@pytest.fixture
def older_run(copied_run: Path) -> Path:
    """Write a run in the first schema: no versions, no baselines, and the model in retriever/."""
    for path in copied_run.rglob("manifest.json"):
        values = json.loads(path.read_text())
        del values["version"]
        path.write_text(json.dumps(values | {"schema_version": 1}))
    model = copied_run / "model"
    (model / "weights.safetensors").rename(model / "retriever.safetensors")
    model.rename(copied_run / "retriever")
    path = copied_run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    for section in ("model", "sasrec", "tiger", "decoder", "item_knn"):
        del values[section]
    del values["evaluation"]["baselines"]
    path.write_text(yaml.safe_dump(values))
    return copied_run


def test_a_run_of_an_older_recgrit_is_refused_and_rebuilt(
    older_run: Path, command: Command
) -> None:
    for arguments in (
        ("recommend", "--user", "1", "--run", older_run),
        ("inspect", "run", "--run", older_run),
        ("export", "bundle", "--run", older_run, "--out", older_run.parent / "bundle"),
    ):
        told = command(*arguments).error_message()
        assert "written by an older recgrit, with schema version 1" in told, arguments
        assert f"recgrit run {older_run}" in told
    done = command("run", older_run, "--json")
    assert done.code == 0, done.err
    assert done.json()["up_to_date"] == []
    assert command("recommend", "--user", "1", "--run", older_run).code == 0
