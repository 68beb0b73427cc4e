"""Test runs as library calls, and what they leave if they do not finish."""

from __future__ import annotations

import dataclasses
import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

import recgrit
from recgrit.config import load_config
from recgrit.embedding.encoders import ENCODERS
from recgrit.errors import ArtifactError, NewerSchemaError
from recgrit.evaluation.report import ReportKey
from recgrit.experiment import ExperimentConfig
from recgrit.layout import stage_directory
from recgrit.manifests import Manifest, read_manifest
from recgrit.pipeline import run_experiment
from recgrit.retrieval.model import TrieRetriever
from recgrit.runs import Run
from recgrit.stages import BEFORE_TRAINING, plan_stages
from recgrit.tracking.outcome import find_commit
from recgrit.tracking.tracker import NullTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as TrackedRun

    FinishedRun = Any
    NewConfig = Callable[..., Path]


def load(path: Path, *overrides: str) -> ExperimentConfig:
    return load_config(ExperimentConfig, path, overrides)


# The stages include the models that are measured beside the trie.
STAGES = [
    "prepare",
    "embed",
    "tokenize",
    "train",
    "baseline-popularity",
    "baseline-item_knn",
    "evaluate",
    "recommend",
]


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob(".*partial*")]


def tracked(store: Path, name: str) -> tuple[MlflowClient, list[TrackedRun]]:
    """Return the tracked runs of an experiment, newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_run_writes_open_file_formats_and_no_pickles(tiny_run: FinishedRun) -> None:
    """The files are Parquet, safetensors, plain arrays, JSON and YAML, and never pickles."""
    suffixes = {path.suffix for path in tiny_run.directory.rglob("*") if path.is_file()}
    assert suffixes == {".parquet", ".safetensors", ".npy", ".npz", ".json", ".yaml"}
    ids = pl.read_parquet(tiny_run.directory / "semantic_ids" / "semantic_ids.parquet")
    assert ids.height == 40
    assert ids.select(pl.exclude("item_id", "title")).is_unique().all()
    assert leftovers(tiny_run.directory.parent) == []


def test_every_manifest_names_its_parents_and_inputs(tiny_run: FinishedRun) -> None:
    found: dict[str, Manifest] = {}
    stages = plan_stages(ExperimentConfig.load(tiny_run.directory), "recommend")
    assert [stage.name for stage in stages] == STAGES
    for stage in stages:
        directory = stage_directory(tiny_run.directory, stage.name)
        found[stage.name] = manifest = read_manifest(directory)
        assert (manifest.stage, manifest.version) == (stage.name, stage.version)
        assert manifest.parents == {name: found[name].fingerprint for name in stage.parents}
        assert manifest.summary
        assert stage.describe(manifest.summary)
    assert [Path(name).name for name in found["prepare"].inputs] == ["u.data", "u.item"]


def test_settings_are_kept_with_absolute_paths(tiny_run: FinishedRun) -> None:
    values = yaml.safe_load((tiny_run.directory / "config.yaml").read_text())
    assert values["data"]["path"] == str(tiny_run.data)
    assert values["retriever"]["epochs"] == 4
    assert set(values) == set(ExperimentConfig.model_fields)


def test_a_run_is_tracked(tiny_run: FinishedRun) -> None:
    client, runs = tracked(tiny_run.directory.parent, "tiny")
    (run,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    stages = {
        found.data.tags["recgrit.stage"]: found
        for found in runs
        if found.data.tags.get("mlflow.parentRunId") == run.info.run_id
    }
    assert len(runs) == 1 + len(stages)
    assert list(stages) == list(reversed(STAGES)), "one run a stage"
    assert {found.info.status for found in runs} == {"FINISHED"}
    assert run.info.run_name == "tiny"
    assert stages["train"].info.run_name == "tiny/train"
    assert run.data.params["retriever.epochs"] == "4"
    values = tiny_run.result.json()
    assert run.data.metrics["test/ndcg_at_10"] == pytest.approx(values["test"]["ndcg_at_10"])
    new = Run(tiny_run.directory).new_items["trie"].metrics()
    assert run.data.metrics["test_new_items/ndcg_at_10"] == pytest.approx(new["ndcg_at_10"])
    assert values["test_new_items"] == pytest.approx(new)
    assert list(values).index("test_new_items") < list(values).index("test")
    for kind in ("popularity", "item_knn"):
        assert run.data.metrics[f"{kind}/test/ndcg_at_10"] == pytest.approx(
            values["baselines"][kind]["test"]["ndcg_at_10"]
        )
    assert stages["tokenize"].data.metrics["tokenizer/level_0/codebook_usage"] > 0
    assert stages["tokenize"].data.params["tokenizer.num_levels"] == "2"
    losses = client.get_metric_history(stages["train"].info.run_id, "train/train_loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]
    around = client.get_metric_history(run.info.run_id, "train/train_loss")
    assert [metric.value for metric in around] == [metric.value for metric in losses]
    manifest = read_manifest(tiny_run.directory / "model")
    assert run.data.tags["fingerprint.train"] == manifest.fingerprint
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"semantic_ids", "model", "evaluation", "popularity", "item_knn"} <= names
    assert {"report.html", "config.yaml"} <= names
    assert run.data.tags["recgrit.command"].endswith("--json")
    # The repository may have another commit by now.
    has_commit = "mlflow.source.git.commit" in run.data.tags
    assert has_commit == (find_commit() is not None)
    assert values["model_uri"] == "models:/tiny/1"
    assert any(name.startswith("system/cpu") for name in run.data.metrics)


def test_a_tracked_run_names_its_data(tiny_run: FinishedRun) -> None:
    _, runs = tracked(tiny_run.directory.parent, "tiny")
    (found,) = [run for run in runs if run.inputs.dataset_inputs]
    (entry,) = found.inputs.dataset_inputs
    assert entry.dataset.name == "movielens-100k"
    assert entry.dataset.digest == read_manifest(tiny_run.directory / "data").fingerprint
    assert json.loads(entry.dataset.source)["uri"] == str(tiny_run.data / "u.data")
    assert json.loads(entry.dataset.profile)["num_users"] == 60
    assert entry.tags[0].value == "training"


def test_a_tracked_run_registers_its_model(tiny_run: FinishedRun) -> None:
    """The registered model has the name of the run, and MLflow loads and calls it."""
    import mlflow.pyfunc

    client, runs = tracked(tiny_run.directory.parent, "tiny")
    (version,) = client.search_model_versions("name = 'tiny'")
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

    stages = [
        dataclasses.replace(stage, build=fail) if stage.name == "embed" else stage
        for stage in BEFORE_TRAINING
    ]
    monkeypatch.setattr("recgrit.stages.BEFORE_TRAINING", stages)
    config = load(new_config(tracking={"backend": "mlflow"}))
    with pytest.raises(ZeroDivisionError):
        run_experiment(config)
    statuses = {run.info.run_name: run.info.status for run in tracked(tmp_path / "runs", "new")[1]}
    assert statuses == {"new": "FAILED", "new/embed": "FAILED", "new/prepare": "FINISHED"}
    left = sorted(path.name for path in (tmp_path / "runs" / "new").iterdir())
    assert left == [".tracking.json", "config.yaml", "data"]

    # The next attempt resumes the tracked run and the tracked runs of its stages.
    monkeypatch.undo()
    run_experiment(config, until="train")
    runs = tracked(tmp_path / "runs", "new")[1]
    assert sorted(run.info.run_name for run in runs) == [
        "new",
        "new/embed",
        "new/prepare",
        "new/tokenize",
        "new/train",
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not (tmp_path / "runs" / "new" / ".tracking.json").exists()


def test_a_tracked_run_that_fails_after_the_last_stage_is_completed_later(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    config = load(new_config(tracking={"backend": "mlflow"}))
    monkeypatch.setattr("recgrit.pipeline.record_data", fail)
    with pytest.raises(ZeroDivisionError):
        run_experiment(config)
    assert (tmp_path / "runs" / "new" / ".tracking.json").exists()
    monkeypatch.undo()
    result = run_experiment(config)
    assert len(result.up_to_date) == len(result.artifacts)
    assert result.model_uri == "models:/new/1"
    assert not (tmp_path / "runs" / "new" / ".tracking.json").exists()
    assert not run_experiment(config).tracking, "once is enough"
    # Other settings make a new tracked run, because a finished one is not changed.
    run_experiment(load(new_config(tracking={"backend": "mlflow"}), "seed=1"), until="prepare")
    run_experiment(
        load(new_config(tracking={"backend": "mlflow"}), "data.min_item_interactions=2"),
        until="prepare",
    )
    names = [run.info.run_name for run in tracked(tmp_path / "runs", "new")[1]]
    assert names.count("new") == 2


def test_a_killed_run_resumes(
    new_config: NewConfig, tmp_path: Path, stop_in_training: Callable[..., Any]
) -> None:
    run = tmp_path / "runs" / "new"
    stop_in_training(new_config(), run, signal.SIGKILL)
    assert leftovers(run) == [".model.partial"]
    assert not (run / "model").exists()
    # The run is resumed from its folder alone, which contains its settings.
    result = run_experiment(load(run / "config.yaml", "retriever.epochs=2"))
    assert result.up_to_date == ["prepare", "embed", "tokenize"]
    assert leftovers(run) == []
    assert (run / "recommendations" / "recommendations.parquet").is_file()


def test_an_interrupted_training_resumes_where_it_stopped(
    new_config: NewConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from recgrit.training import loop

    settings = ("retriever.epochs=3", "tracking.backend=none")
    whole = load(new_config(), *settings, f"run.dir={tmp_path / 'whole'}")
    run_experiment(whole, until="train")
    config = load(new_config(), *settings, f"run.dir={tmp_path / 'cut'}")
    save, calls = loop.save_checkpoint, []

    def cut_after_two(*arguments: Any) -> None:
        save(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, until="train")
    monkeypatch.undo()
    caplog.set_level("INFO")
    run_experiment(config, until="train")
    assert "resuming the interrupted training after epoch 2" in caplog.text
    first, second = (
        (run / "model" / "weights.safetensors").read_bytes()
        for run in (whole.run.dir, config.run.dir)
    )
    assert first == second
    assert not (config.run.dir / ".training").exists()


def test_force_trains_from_the_start(
    new_config: NewConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from recgrit.training.loop import TrainingEpoch

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
    assert "resuming" not in caplog.text


@pytest.mark.parametrize(("limit", "stage"), [(1_000, "data"), (20_000, "model")])
def test_a_full_disk_is_reported(
    new_config: NewConfig, tmp_path: Path, limit: int, stage: str
) -> None:
    """A limit on the size of files makes the same writes fail as a full disk."""
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
    # Root may write anywhere, so the test replaces the check.
    monkeypatch.setattr("recgrit.pipeline.os.access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match=r"no permission to write to .*run\.dir=PATH"):
        run_experiment(load(new_config()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("model=popularity", ("model.kind=trie", "model.kind=popularity")),
        ("data.source=recbole", ("data.source=movielens-100k", "data.source=recbole")),
    ],
)
def test_another_model_or_source_does_not_take_the_place_of_a_run(
    copied_run: Path, command: Callable[..., Any], override: str, names: tuple[str, str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")}
    told = command("run", copied_run, override).error_message()
    for phrase in (str(copied_run), *names, "run.dir=PATH", "--force"):
        assert phrase in told
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")} == before


def test_force_replaces_a_run_by_another_model(copied_run: Path) -> None:
    config = load(copied_run / "config.yaml", f"run.dir={copied_run}", "model=popularity")
    result = run_experiment(config, force=True)
    assert list(result.artifacts) == [
        "prepare",
        "train",
        "baseline-item_knn",
        "evaluate",
        "recommend",
    ]
    run = Run(copied_run)
    assert run.model_kind == "popularity"
    assert set(run.reports) == {
        ReportKey(*key)
        for key in itertools.product(("popularity", "item_knn"), ("valid", "test"), (False, True))
    }
    assert run.stages() == list(result.artifacts)
    assert not (copied_run / "semantic_ids").exists(), "nothing of the other model is left"
    # The run now belongs to that model.
    assert run_experiment(ExperimentConfig.load(copied_run)).up_to_date == list(result.artifacts)


def test_other_files_of_another_place_do_not_take_the_place_of_a_run(
    copied_run: Path, write_movielens: Callable[..., Path], command: Callable[..., Any]
) -> None:
    other = write_movielens(copied_run.parent / "other", seed=1)
    told = command("run", copied_run, f"data.path={other}").error_message()
    for phrase in ("data.path=", str(other), "run.dir=PATH", "--force"):
        assert phrase in told
    assert command("prepare", copied_run, f"data.path={other}", "--force").code == 0
    assert not (copied_run / "model").exists()


def test_moved_data_files_are_refused_until_their_path_is_set(
    new_config: NewConfig, tiny_data: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    first = Path(shutil.copytree(tiny_data, tmp_path / "first"))
    assert command("prepare", new_config(first)).code == 0
    second = first.rename(tmp_path / "second")
    told = command("prepare", tmp_path / "runs" / "new").error_message()
    assert "you moved the files of this run" in told
    assert "data.path=PATH" in told
    done = command("prepare", tmp_path / "runs" / "new", f"data.path={second}", "--json")
    assert done.json()["up_to_date"] == ["prepare"]


def test_a_refused_replacement_deletes_nothing(
    copied_run: Path, command: Callable[..., Any]
) -> None:
    before = sorted(copied_run.rglob("*"))
    told = command(
        "run", copied_run, "model=sasrec", "sasrec.device=tpu", "--force"
    ).error_message()
    assert "device" in told
    assert sorted(copied_run.rglob("*")) == before


def test_runs_of_different_data_go_to_different_folders() -> None:
    def directory(*overrides: str) -> Path:
        return load_config(ExperimentConfig, overrides=overrides).run.dir

    assert directory() == Path("runs/movielens-100k")
    assert directory("data.source=amazon2018/Gift_Cards") == Path("runs/amazon2018-gift_cards")
    assert directory("run.dir=runs/mine", "data.source=table") == Path("runs/mine")
    assert directory("run.cache_dir=cache", "data.source=table") == Path("runs/table")
    config = load_config(ExperimentConfig, overrides=["run.dir=runs/shop"])
    assert config.experiment_name == "shop", "what MLflow and the registered model call it"
    named = load_config(ExperimentConfig, overrides=["tracking.experiment=winter"])
    assert named.experiment_name == "winter"


def test_equal_settings_give_equal_results(new_config: NewConfig, tiny_run: FinishedRun) -> None:
    config = load(new_config())
    result = run_experiment(config)
    assert result.up_to_date == []
    values = tiny_run.result.json()
    for name in ("valid", "test_masked"):
        assert result.metrics()[name] == pytest.approx(values[name])
    for stage in ("prepare", "embed", "tokenize"):
        ours = read_manifest(result.artifacts[stage])
        theirs = read_manifest(stage_directory(tiny_run.directory, stage))
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
    assert run_experiment(config).up_to_date == STAGES
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


def test_the_backend_none_tracks_nothing(new_config: NewConfig, tmp_path: Path) -> None:
    config = load(new_config())
    assert run_experiment(config, until="prepare").tracking == NullTracker().location
    assert not list((tmp_path / "runs").glob("mlflow*"))


def test_from_the_command_to_the_loss_it_is_eight_calls(
    command: Callable[..., Any],
    new_config: NewConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls are those that ARCHITECTURE.md lists. An interrupt stops at the first loss."""
    calls: list[str] = []

    def loss(*_: object) -> None:
        package = Path(recgrit.__file__).parent
        calls.extend(
            frame.name
            for frame in traceback.extract_stack()
            if Path(frame.filename).is_relative_to(package)
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(TrieRetriever, "loss", loss)
    assert command("run", new_config()).code == 130
    ours = calls[calls.index("command") :]
    assert ours[:2] == ["command", "run_experiment"]
    assert ours[-2:] == ["train_model", "add"]
    assert len(ours) == 8


@pytest.mark.parametrize("kind", ["trie", "sasrec"])
def test_weights_of_events_enter_the_training(
    new_config: NewConfig, tmp_path: Path, kind: str
) -> None:
    draw = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", draw.choice(["view", "cart", "buy"]), 1_700_000_000 + time)
        for user in range(40)
        for time, item in enumerate(draw.integers(0, 15, 12))
    ]
    log = tmp_path / "log.csv"
    names = ["user_id", "item_id", "event", "timestamp"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(log)
    losses, runs = {}, {}
    for weights in (
        "view: 0, cart: 1, buy: 1",
        "view: 0, cart: 5, buy: 5",
        "view: 0, cart: 1, buy: 9",
    ):
        config = load(
            new_config(),
            "data.source=table",
            f"data.path={log}",
            "data.table.event=event",
            f"data.event_weights={{{weights}}}",
            f"run.dir={tmp_path / f'run{len(runs)}'}",
            f"model.kind={kind}",
            "evaluation.baselines=[popularity]",
            "retriever.epochs=1",
            "sasrec.epochs=1",
            "sasrec.model_dim=16",
            "sasrec.batch_targets=64",
        )
        run_experiment(config)
        runs[weights] = run = Run(config.run.dir)
        losses[weights] = run.manifest("train").summary["best"]["train_loss"]
        split, events = run.data.split, run.data.interactions.frame["event"].to_numpy()
        for name in ("valid", "test"):
            assert "view" not in events[split.target_positions(name)[split.target_users(name)]]
    alike, scaled, uneven = losses.values()
    assert alike == scaled
    assert alike != uneven
