"""Test tuning by validation: files that it keeps, data that it never reads, and resumption."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from recgrit.config import load_config
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ArtifactError, ConfigError, TrainingError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.tuning import study as tuning
from recgrit.tuning.study import TuneResult, tune
from recgrit.tuning.trial import EPOCH_METRIC, TrialTracker

NewConfig = Callable[..., Path]
HOUR = 3600.0


def load(path: Path, *overrides: str) -> ExperimentConfig:
    return load_config(ExperimentConfig, path, overrides)


def trials_of(result: TuneResult) -> list[Path]:
    return sorted((result.folder / "trials").iterdir())


def values_of(result: TuneResult) -> list[tuple[dict[str, Any], float | None]]:
    """Return the parameters and the value of each trial that ended."""
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{result.folder / 'study.db'}")
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return [(t.params, t.value) for t in study.trials if t.state in ended]


def test_the_winner_is_never_worse_and_test_is_never_read(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = SequenceSplit.targets

    def spy(self: SequenceSplit, split: Any, sequences: Any) -> Any:
        asked.append(split)
        return original(self, split, sequences)

    monkeypatch.setattr(SequenceSplit, "targets", spy)
    config = load(new_config())
    result = tune(config, tmp_path / "tune", num_trials=3, budget=HOUR)
    assert set(asked) == {"valid"}
    assert result.states == {"complete": 3, "pruned": 0, "failed": 0}
    assert result.best >= result.given
    assert len(trials_of(result)) == 3
    for folder in trials_of(result):
        assert not (folder / "evaluation").exists()
        assert not (folder / "recommendations").exists()
    models = [folder.name for folder in trials_of(result) if (folder / "model").is_dir()]
    assert models == sorted({"01", f"{result.best_number:02}"}), "beaten models are deleted"

    # The value of the configured settings equals that of an ordinary run.
    monkeypatch.undo()
    whole = run_experiment(config, until="evaluate")
    assert whole.metrics()["valid"]["ndcg_at_10"] == pytest.approx(result.given, abs=1e-9)

    # The winner's run exists, and only its evaluation remains.
    winner = load(result.winner)
    assert winner.run.dir == trials_of(result)[result.best_number - 1]
    evaluated = run_experiment(winner, until="evaluate")
    assert evaluated.up_to_date == ["prepare", "embed", "tokenize", "train"]
    assert evaluated.metrics()["valid"]["ndcg_at_10"] == pytest.approx(result.best, abs=1e-9)


def test_stages_of_equal_settings_are_shared_by_trials(
    new_config: NewConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vary = ["retriever.dropout"]
    with caplog.at_level(logging.INFO, "recgrit"):
        result = tune(load(new_config()), tmp_path / "tune", num_trials=2, budget=HOUR, vary=vary)
    first, second = trials_of(result)
    for name in (
        "data/manifest.json",
        "embeddings/features_vectors.npy",
        "semantic_ids/manifest.json",
    ):
        assert (first / name).stat().st_ino == (second / name).stat().st_ino, name
    messages = [record.getMessage() for record in caplog.records]
    assert sum("] tokenize: " in text and "up to date" not in text for text in messages) == 1
    assert any(text.startswith("trial 2 of 2: valid NDCG@10") for text in messages)
    Run(second).manifest("tokenize")  # Reading the manifest checks that the stage fits its parents.


def test_the_winner_says_why(new_config: NewConfig, tmp_path: Path) -> None:
    config = load(new_config(), "model.kind=item_knn", "seed=3")
    result = tune(config, tmp_path / "tune", num_trials=4, budget=HOUR)
    text = result.winner.read_text()
    assert f"Trial {result.best_number} of 'recgrit tune', the best of 4 (4 complete)" in text
    assert "seed 3" in text
    assert f"{result.best:.4f}; as configured, trial 1: {result.given:.4f}" in text
    assert "# configured 20; tried 2, 5, 10, 20, 50" in text
    values = yaml.safe_load(text)
    tried = values_of(result)[result.best_number - 1][0]
    assert values["item_knn"]["window"] == tried["item_knn.window"]
    assert values["item_knn"]["discount"] == pytest.approx(tried["item_knn.discount"], rel=5e-3)
    assert values["seed"] == 3


@pytest.mark.parametrize("kind", ["transitions", "sasrec"])
def test_other_models_are_tuned(new_config: NewConfig, tmp_path: Path, kind: str) -> None:
    small = {"model_dim": 16, "num_heads": 2, "num_layers": 1, "epochs": 2, "precision": "float32"}
    config = load(new_config(sasrec=small), f"model.kind={kind}")
    result = tune(config, tmp_path / "tune", num_trials=2, budget=HOUR)
    assert result.best >= result.given > 0
    assert load(result.winner).model.kind == kind


def test_a_killed_tuning_resumes_within_its_trial(
    new_config: NewConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, vary = load(new_config()), ["retriever.dropout", "retriever.learning_rate"]
    options: dict[str, Any] = {"num_trials": 3, "budget": HOUR, "vary": vary}
    whole = tune(config, tmp_path / "whole", **options)
    original, seen = TrialTracker.log_metrics, []

    def cut(self: TrialTracker, metrics: Any, step: int | None = None) -> None:
        original(self, metrics, step)
        seen.append(step if EPOCH_METRIC in metrics else None)
        if seen.count(2) == 2:  # Stop after the second epoch of the second trial.
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrialTracker, "log_metrics", cut)
        with pytest.raises(KeyboardInterrupt):
            tune(config, tmp_path / "cut", **options)
    with caplog.at_level(logging.INFO, "recgrit"):
        resumed = tune(config, tmp_path / "cut", **options)
    messages = [record.getMessage() for record in caplog.records]
    assert "resuming the interrupted training after epoch 2" in messages
    assert values_of(resumed) == values_of(whole)
    assert len(trials_of(resumed)) == 3
    assert resumed.states["complete"] == 3

    again = tune(config, tmp_path / "cut", **options)
    assert (again.best, again.states) == (resumed.best, resumed.states), "there is nothing to do"
    more = tune(config, tmp_path / "cut", **{**options, "num_trials": 4})
    assert values_of(more)[:3] == values_of(whole)
    assert len(values_of(more)) == 4


def test_a_spent_budget_ends_a_trial_between_epochs(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = load(new_config()), tmp_path / "tune"
    clock = [0.0]
    monkeypatch.setattr(tuning._Tuning, "spent", property(lambda self: clock[0]))
    original = TrialTracker.log_metrics

    def tick(self: TrialTracker, metrics: Any, step: int | None = None) -> None:
        clock[0] += EPOCH_METRIC in metrics
        original(self, metrics, step)

    monkeypatch.setattr(TrialTracker, "log_metrics", tick)
    with pytest.raises(ConfigError, match=r"budget of 2s ended within the first trial.*larger"):
        tune(config, out, num_trials=5, budget=2)
    assert clock == [2.0]
    clock[0] = 0.0  # Finished epochs are reported again. Each costs one tick of this clock.
    result = tune(config, out, num_trials=5, budget=6)
    assert (result.is_over, result.states["complete"], result.best_number) == (True, 1, 1)
    assert load(result.winner).retriever == config.retriever


def test_pruned_and_failed_trials_count_and_leave_no_model(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: True)

    def fail_second(config: ExperimentConfig, **options: Any) -> Any:
        if config.run.dir.name == "02" and options["until"] == "train":
            raise TrainingError("The loss became nan.")
        return run_experiment(config, **options)

    monkeypatch.setattr(tuning, "run_experiment", fail_second)
    result = tune(load(new_config()), tmp_path / "tune", num_trials=3, budget=HOUR)
    assert result.states == {"complete": 1, "pruned": 1, "failed": 1}
    models = [folder.name for folder in trials_of(result) if (folder / "model").is_dir()]
    assert models == ["01"]
    assert not (result.folder / "trials" / "03" / ".training").exists()
    assert "(1 complete, 1 pruned, 1 failed)" in result.winner.read_text()


def test_a_folder_of_other_trials_is_refused_before_it_is_touched(
    new_config: NewConfig, tmp_path: Path
) -> None:
    config = load(new_config(), "model.kind=item_knn")
    result = tune(config, tmp_path / "tune", num_trials=1, budget=HOUR)
    before = Run(trials_of(result)[0]).manifest("prepare").fingerprint
    for other in (["seed=1"], ["data.min_user_interactions=7"], ["item_knn.window=3"]):
        changed = load(new_config(), "model.kind=item_knn", *other)
        with pytest.raises(ArtifactError, match="other settings, other data"):
            tune(changed, tmp_path / "tune", num_trials=1, budget=HOUR)
    with pytest.raises(ArtifactError, match="another search space"):
        tune(config, tmp_path / "tune", num_trials=1, budget=HOUR, vary=["item_knn.window"])
    assert Run(trials_of(result)[0]).manifest("prepare").fingerprint == before
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "study.db").write_text("no database, but long enough to look at" * 9)
    with pytest.raises(ArtifactError, match="cannot be opened as a study"):
        tune(config, tmp_path / "odd", num_trials=1, budget=HOUR)


def test_trials_are_runs_nested_in_one(new_config: NewConfig, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = load(new_config(tracking={"backend": "mlflow", "system_metrics": False}))
    vary = ["retriever.dropout"]
    tune(config, tmp_path / "tune", num_trials=2, budget=HOUR, vary=vary)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs'}/mlflow.db")
    experiment = client.get_experiment_by_name("new")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tune", "tune/trial-01", "tune/trial-02"}
    parent = runs.pop("tune")
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["valid_ndcg_at_10"] > 0
        curve = client.get_metric_history(run.info.run_id, "train/valid_ndcg_at_10")
        assert [point.step for point in curve] == [1, 2, 3, 4]
        assert not [name for name in run.data.metrics if "test" in name]
    assert "retriever.dropout" in runs["tune/trial-02"].data.params
    assert parent.data.metrics["best/valid_ndcg_at_10"] > 0


def test_the_command(new_config: NewConfig, tmp_path: Path, command: Callable[..., Any]) -> None:
    path, place = new_config(), tmp_path / "out"
    done = command("tune", path, "model.kind=item_knn", "--trials", 3, "--out", place, "--json")
    assert done.code == 0, done.err
    values = done.json()
    assert values["best"] >= values["as_configured"]
    assert f"recgrit run {place / 'winner.yaml'}" in done.out
    assert "trial 3 of 3" in done.err
    refused = command("tune", path, "model.kind=popularity")
    assert "nothing to tune in the model popularity" in refused.error_message()
    for wrong in ("2", "soon", "0m", "2h later"):
        assert (
            "--budget is a time such as" in command("tune", path, "--budget", wrong).error_message()
        )


def test_without_optuna_the_command_says_how_to_get_it(
    new_config: NewConfig, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert "pip install 'recgrit[tune]'" in command("tune", new_config()).error_message()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_values SET value = 0.0",
        "UPDATE trial_params SET param_value = param_value + 0.001",
        "UPDATE trials SET state = 'ODD'",
        "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'seconds'",
        "UPDATE study_user_attributes SET value_json = '-5' WHERE key = 'seconds'",
        "DELETE FROM study_user_attributes WHERE key = 'start'",
        "DROP TABLE trial_values",
        None,
    ],
)
def test_a_study_that_changed_since_is_refused(
    new_config: NewConfig, tmp_path: Path, change: str | None
) -> None:
    config = load(new_config(), "model.kind=item_knn")
    path = tune(config, tmp_path / "tune", num_trials=2, budget=HOUR).folder / "study.db"
    if change is None:
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute(change).rowcount
            connection.commit()
    with pytest.raises(ArtifactError, match=r"cannot be opened as a study|other settings"):
        tune(config, tmp_path / "tune", num_trials=3, budget=HOUR)


@pytest.mark.parametrize("call", ["tell", "enqueue_trial"])
def test_a_tuning_killed_while_it_starts_again_loses_no_trial(
    new_config: NewConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """After a kill and a restart, the first trial still has the configured settings."""
    config = load(new_config(), "model.kind=item_knn")
    options: dict[str, Any] = {"num_trials": 2, "budget": HOUR}
    whole = tune(config, tmp_path / "whole", **options)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for place, name in ((tuning, "measure"), (optuna.Study, call)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, die)
            with pytest.raises(KeyboardInterrupt):
                tune(config, tmp_path / "cut", **options)
    assert values_of(tune(config, tmp_path / "cut", **options)) == values_of(whole)


def test_trials_are_not_kept_in_an_artifact(
    new_config: NewConfig, copied_run: Path, command: Callable[..., Any]
) -> None:
    for place in (copied_run / "data", copied_run / "data" / "inner"):
        told = command("tune", new_config(), "--trials", 1, "--out", place).error_message()
        assert "an artifact that recgrit wrote" in told
    assert command("inspect", "run", "--run", copied_run, "--verify").code == 0
