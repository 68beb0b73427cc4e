"""Stages as library calls: what a run leaves behind, also when it does not reach its end."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

from recgrit.artifacts import read_manifest
from recgrit.config import load_config
from recgrit.embedding.encoders import ENCODERS
from recgrit.errors import ArtifactError, NewerSchemaError
from recgrit.experiment import ExperimentConfig
from recgrit.running import run_experiment
from recgrit.runs import LAYOUT, Run
from recgrit.stages import STAGES
from recgrit.tracking.tracker import NullTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as TrackedRun

    FinishedRun = Any
    NewConfig = Callable[..., Path]


def load(path: Path, *overrides: str) -> ExperimentConfig:
    return load_config(ExperimentConfig, path, overrides)


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob(".*partial*")]


def tracked(store: Path) -> tuple[MlflowClient, list[TrackedRun]]:
    """The runs in a store, newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("recgrit")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_run_leaves_tables_anyone_can_read(tiny_run: FinishedRun) -> None:
    """No pickles: Parquet, safetensors, plain arrays and JSON, and the settings as YAML."""
    suffixes = {path.suffix for path in tiny_run.directory.rglob("*") if path.is_file()}
    assert suffixes == {".parquet", ".safetensors", ".npy", ".json", ".yaml"}
    ids = pl.read_parquet(tiny_run.directory / "semantic_ids" / "semantic_ids.parquet")
    assert ids.height == 40
    assert ids.select(pl.exclude("item_id", "title")).is_unique().all()
    assert leftovers(tiny_run.directory.parent) == []


def test_every_manifest_says_what_it_was_built_from(tiny_run: FinishedRun) -> None:
    found = {}
    for stage, (folder, parents) in LAYOUT.items():
        found[stage] = manifest = read_manifest(tiny_run.directory / folder)
        assert manifest.stage == stage
        assert manifest.parents == {parent: found[parent].fingerprint for parent in parents}
        assert manifest.summary
        assert STAGES[stage].describe(manifest.summary)
    assert [Path(name).name for name in found["prepare"].inputs] == ["u.data", "u.item"]


def test_settings_are_kept_with_absolute_paths(tiny_run: FinishedRun) -> None:
    values = yaml.safe_load((tiny_run.directory / "config.yaml").read_text())
    assert values["data"]["path"] == str(tiny_run.data)
    assert values["retriever"]["epochs"] == 4
    assert set(values) == set(ExperimentConfig.model_fields)


def test_a_run_is_tracked(tiny_run: FinishedRun) -> None:
    client, runs = tracked(tiny_run.directory.parent)
    (run,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    stages = {
        found.data.tags["recgrit.stage"]: found
        for found in runs
        if found.data.tags.get("mlflow.parentRunId") == run.info.run_id
    }
    assert len(runs) == 1 + len(stages)
    assert list(stages) == list(reversed(LAYOUT)), "one run a stage"
    assert {found.info.status for found in runs} == {"FINISHED"}
    assert run.info.run_name == "tiny"
    assert stages["train"].info.run_name == "tiny/train"
    assert run.data.params["retriever.epochs"] == "4"
    values = tiny_run.result.json()
    assert run.data.metrics["test/ndcg_at_10"] == pytest.approx(values["test"]["ndcg_at_10"])
    assert run.data.metrics["popularity_test/ndcg_at_10"] == pytest.approx(
        values["popularity"]["ndcg_at_10"]
    )
    assert stages["tokenize"].data.metrics["tokenizer/level_0/codebook_usage"] > 0
    assert stages["tokenize"].data.params["tokenizer.num_levels"] == "2"
    losses = client.get_metric_history(stages["train"].info.run_id, "retriever/train_loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    manifest = read_manifest(tiny_run.directory / "retriever")
    assert run.data.tags["fingerprint.train"] == manifest.fingerprint
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"semantic_ids", "retriever", "evaluation"} <= names
    assert any(name.startswith("system/cpu") for name in run.data.metrics)


def test_a_tracked_run_names_its_data(tiny_run: FinishedRun) -> None:
    _, runs = tracked(tiny_run.directory.parent)
    (found,) = [run for run in runs if run.inputs.dataset_inputs]
    (entry,) = found.inputs.dataset_inputs
    assert entry.dataset.name == "movielens-100k"
    assert entry.dataset.digest == read_manifest(tiny_run.directory / "data").fingerprint
    assert json.loads(entry.dataset.source)["uri"] == str(tiny_run.data / "u.data")
    assert json.loads(entry.dataset.profile)["num_users"] == 60
    assert entry.tags[0].value == "training"


def test_a_tracked_run_registers_its_model(tiny_run: FinishedRun) -> None:
    """As a folder of plain files that MLflow loads, and that answers as the run does."""
    import mlflow.pyfunc

    client, runs = tracked(tiny_run.directory.parent)
    (version,) = client.search_model_versions("name = 'recgrit'")
    (run,) = [found for found in runs if found.info.run_id == version.run_id]
    assert run.info.run_name == "tiny"
    assert [output.model_id for output in run.outputs.model_outputs]
    model = mlflow.pyfunc.load_model(version.source)
    opened = Run(tiny_run.directory)
    history = opened.history("3")["item_id"].to_list()
    (row,) = model.predict(pd.DataFrame({"history": [history]})).itertuples()
    assert row.item_ids == opened.recommend("3")["item_id"].to_list()


def test_a_stage_that_fails_closes_its_tracked_run(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: ExperimentConfig, writer: Any, tracker: Any, engine: Any) -> None:
        (writer.path / "half.parquet").write_text("half")
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setitem(
        STAGES,
        "embed",
        STAGES["embed"].__class__(
            settings=STAGES["embed"].settings,
            inputs=STAGES["embed"].inputs,
            build=fail,
            describe=STAGES["embed"].describe,
        ),
    )
    config = load(new_config(tracking={"backend": "mlflow"}))
    with pytest.raises(ZeroDivisionError):
        run_experiment(config)
    statuses = {run.info.run_name: run.info.status for run in tracked(tmp_path / "runs")[1]}
    assert statuses == {"new": "FAILED", "new/embed": "FAILED", "new/prepare": "FINISHED"}
    left = sorted(path.name for path in (tmp_path / "runs" / "new").iterdir())
    assert left == [".tracking.json", "config.yaml", "data"]

    # The next attempt goes on with the same tracked run, and its stages with theirs.
    monkeypatch.undo()
    run_experiment(config, until="train")
    runs = tracked(tmp_path / "runs")[1]
    assert sorted(run.info.run_name for run in runs) == [
        "new",
        "new/embed",
        "new/prepare",
        "new/tokenize",
        "new/train",
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not (tmp_path / "runs" / "new" / ".tracking.json").exists()
    # A finished run is history: other settings are another run.
    run_experiment(load(new_config(tracking={"backend": "mlflow"}), "seed=1"), until="prepare")
    run_experiment(
        load(new_config(tracking={"backend": "mlflow"}), "data.min_item_interactions=2"),
        until="prepare",
    )
    names = [run.info.run_name for run in tracked(tmp_path / "runs")[1]]
    assert names.count("new") == 2


def test_a_killed_run_is_taken_up_again(
    new_config: NewConfig, tmp_path: Path, stop_in_training: Callable[..., Any]
) -> None:
    run = tmp_path / "runs" / "new"
    number, _ = stop_in_training(new_config(), run, signal.SIGKILL)
    assert leftovers(run) == [f".retriever.partial-{number}"]
    assert not (run / "retriever").exists()
    # From the folder alone: its settings were kept.
    result = run_experiment(load(run / "config.yaml", "retriever.epochs=2"))
    assert result.up_to_date == ["prepare", "embed", "tokenize"]
    assert leftovers(run) == []
    assert (run / "recommendations" / "recommendations.parquet").is_file()


def test_an_interrupted_training_is_taken_up_where_it_was(
    new_config: NewConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from recgrit.retrieval import training

    settings = ("retriever.epochs=3", "tracking.backend=none")
    whole = load(new_config(), *settings, f"run.dir={tmp_path / 'whole'}")
    run_experiment(whole, until="train")
    config = load(new_config(), *settings, f"run.dir={tmp_path / 'cut'}")
    save, calls = training.save_checkpoint, []

    def cut_after_two(*arguments: Any) -> None:
        save(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_checkpoint", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, until="train")
    monkeypatch.undo()
    caplog.set_level("INFO")
    run_experiment(config, until="train")
    assert "going on after epoch 2 of an interrupted training" in caplog.text
    first, second = (
        (run / "retriever" / "retriever.safetensors").read_bytes()
        for run in (whole.run.dir, config.run.dir)
    )
    assert first == second
    assert not (config.run.dir / ".training").exists()


def test_force_trains_from_the_start(
    new_config: NewConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from recgrit.retrieval.training import TrainingEpoch

    config = load(new_config(), "tracking.backend=none")

    def stop(epoch: TrainingEpoch) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingEpoch, "metrics", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, until="train")
    assert (config.run.dir / ".training").is_dir()
    caplog.set_level("INFO")
    run_experiment(config, until="train", force=True)
    assert "going on" not in caplog.text


@pytest.mark.parametrize(("limit", "stage"), [(1_000, "data"), (20_000, "retriever")])
def test_a_full_disk_is_told(new_config: NewConfig, tmp_path: Path, limit: int, stage: str) -> None:
    """A limit on the size of files stands in for a full disk: the same writes fail."""
    done = subprocess.run(
        [sys.executable, "-m", "recgrit", "run", str(new_config()), "retriever.epochs=1"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    told = "".join(character for character in done.stderr if character not in "│ \n")
    assert f"Cannotwrite{tmp_path}/runs/new/{stage}:Filetoolarge" in told
    assert not (tmp_path / "runs" / "new" / stage).exists()
    assert leftovers(tmp_path) == []


def test_a_newer_release_is_not_overwritten(copied_run: Path) -> None:
    path = copied_run / "evaluation" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 999}))
    config = load(copied_run / "config.yaml", f"run.dir={copied_run}")
    for force in (False, True):
        with pytest.raises(NewerSchemaError, match="schema version 999"):
            run_experiment(config, until="prepare", force=force)


def test_a_folder_without_permission(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever is root may write anywhere, so the answer is given here.
    monkeypatch.setattr("recgrit.running.os.access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match=r"no permission to write to .*run\.dir=PATH"):
        run_experiment(load(new_config()))
    assert not (tmp_path / "runs").exists()


def test_equal_settings_give_equal_results(new_config: NewConfig, tiny_run: FinishedRun) -> None:
    config = load(new_config())
    result = run_experiment(config)
    assert result.up_to_date == []
    values = tiny_run.result.json()
    for name in ("valid", "test_masked"):
        assert result.reports[name].metrics() == pytest.approx(values[name])
    for stage in ("prepare", "embed", "tokenize"):
        ours = read_manifest(result.artifacts[stage])
        theirs = read_manifest(tiny_run.directory / LAYOUT[stage][0])
        assert ours.files == theirs.files, f"{stage} gives the same bytes each time"


def test_a_stage_alone_stops_there(new_config: NewConfig) -> None:
    result = run_experiment(load(new_config()), until="embed")
    assert list(result.artifacts) == ["prepare", "embed"]
    assert result.reports == {}
    assert result.to_json()["num_users"] is None


def test_the_same_files_elsewhere_are_the_same_input(
    copied_run: Path, write_movielens: Callable[..., Path], tmp_path: Path
) -> None:
    moved = write_movielens(tmp_path / "moved")
    config = load(copied_run / "config.yaml", f"run.dir={copied_run}", f"data.path={moved}")
    assert run_experiment(config).up_to_date == list(STAGES)
    write_movielens(tmp_path / "moved", seed=1)
    assert "prepare" not in run_experiment(config, until="prepare").up_to_date


def test_embeddings_are_cached_across_runs(
    new_config: NewConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lengths:
        name, fingerprint = "lengths", "one"

        def encode(self, texts: list[str]) -> Any:
            lengths = np.array([[len(text), 1.0] for text in texts], np.float32)
            return lengths / np.linalg.norm(lengths, axis=1, keepdims=True)

    monkeypatch.setitem(ENCODERS, "minilm", lambda config, seed: Lengths())
    path = new_config(embedding={"encoder": "minilm"})
    run_experiment(load(path), until="embed")
    caplog.set_level("INFO", logger="recgrit")
    run_experiment(load(path, f"run.dir={tmp_path / 'runs' / 'second'}"), until="embed")
    assert "Vectors of 40 texts found" in caplog.text


def test_nothing_is_tracked_when_asked(new_config: NewConfig, tmp_path: Path) -> None:
    config = load(new_config())
    assert run_experiment(config, until="prepare").tracking == NullTracker().location
    assert not list((tmp_path / "runs").glob("mlflow*"))
