"""Test tracking with a real SQLite store. The first store of a process takes some seconds."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from recgrit.config import load_config
from recgrit.errors import ConfigError, TrackingError
from recgrit.tracking.config import TrackingConfig
from recgrit.tracking.outcome import find_commit
from recgrit.tracking.start import start_tracking
from recgrit.tracking.tracker import NullTracker, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all tests of this module: each new database takes two seconds."""
    return tmp_path_factory.mktemp("runs of today")


def client(store: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")


def find_run(store: Path, name: str) -> Run:
    experiment = client(store).get_experiment_by_name("films")
    assert experiment is not None
    (run,) = client(store).search_runs([experiment.experiment_id], f"run_name = '{name}'")
    return run


def test_params_metrics_artifacts_and_tags_arrive(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow would use this old folder of runs in the working directory by default.
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("artifact_location: elsewhere\n")
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "report.html"
    page.write_text("<p>numbers</p>")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "ids.csv").write_text("item,code\n")

    with start_tracking(
        TrackingConfig(), experiment="films", run_name="full", default_directory=store
    ) as tracker:
        tracker.log_params({"retriever": {"epochs": 3}, "note": "n" * 10_000})
        tracker.log_params({f"many.p{i}": i for i in range(230)})
        for epoch in (1, 2, 3):
            tracker.log_metrics({"valid/recall@10": epoch / 10, "loss": 1 / epoch}, step=epoch)
        tracker.log_metrics({f"codes/{i}": i for i in range(1200)})
        tracker.log_artifact(page)
        tracker.log_artifact(tmp_path / "tables")
        tracker.set_tags({"data": "movielens-100k"})
        location = tracker.location

    run = find_run(store, "full")
    assert run.info.status == "FINISHED"
    assert run.data.params["retriever.epochs"] == "3"
    assert run.data.params["many.p229"] == "229"
    assert run.data.params["note"].endswith("n...")
    assert run.data.metrics["valid/recall_at_10"] == 0.3
    assert run.data.metrics["codes/1199"] == 1199
    history = client(store).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.tags["data"] == "movielens-100k"
    artifacts = store / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "report.html").read_text() == "<p>numbers</p>"
    assert (artifacts / "tables" / "ids.csv").is_file()
    assert f"mlflow ui --backend-store-uri 'sqlite:///{store}/mlflow.db'" in location
    assert "run full" in location
    # No file was written to the working directory.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlruns", "report.html", "tables"]


def test_a_run_within_a_run_ends_by_itself(store: Path) -> None:
    with start_tracking(
        TrackingConfig(), experiment="films", run_name="outer", default_directory=store
    ) as tracker:
        with tracker.stage("embed") as stage:
            stage.log_metrics({"loss": 1.0})
        with pytest.raises(ValueError, match="stop"), tracker.stage("train"):
            raise ValueError("stop")
        tracker.log_metrics({"loss": 2.0})
    outer, embed, train = (find_run(store, f"outer{name}") for name in ("", "/embed", "/train"))
    assert (outer.info.status, embed.info.status, train.info.status) == (
        "FINISHED",
        "FINISHED",
        "FAILED",
    )
    assert embed.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert (outer.data.metrics["loss"], embed.data.metrics["loss"]) == (2.0, 1.0)


def test_an_unfinished_run_is_resumed(store: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"

    def attempt(number: int, error: type[BaseException] | None = None, **settings: int) -> str:
        with (
            contextlib.suppress(ZeroDivisionError, KeyboardInterrupt),
            start_tracking(
                TrackingConfig(),
                experiment="resumed",
                run_name=f"attempt {number}",
                default_directory=store,
                state=state,
                settings=settings,
            ) as tracker,
        ):
            tracker.log_params(settings)
            tracker.log_metrics({"number": number}, step=number)
            assert isinstance(tracker, MLflowTracker)
            name = tracker.run_id
            if error is not None:
                raise error
        return name

    from recgrit.tracking.mlflow_tracker import MLflowTracker

    first = attempt(1, ZeroDivisionError, seed=1)
    assert attempt(2, KeyboardInterrupt, seed=1) == first
    other = attempt(3, ZeroDivisionError, seed=2)
    assert other != first, "other settings"
    assert attempt(4, seed=2) == other
    assert attempt(5, seed=2) != other, "it had finished"
    run = client(store).get_run(other)
    assert run.info.status == "FINISHED"
    history = client(store).get_metric_history(other, "number")
    assert [point.value for point in history] == [3, 4]
    state.write_text("no JSON")
    attempt(6, seed=2)
    assert not state.exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")],
)
def test_the_status_of_an_aborted_run_shows_why_it_ended(
    store: Path, error: type[BaseException], status: str
) -> None:
    name = f"broken by {error.__name__}"
    with (
        pytest.raises(error, match="stop here"),
        start_tracking(
            TrackingConfig(), experiment="films", run_name=name, default_directory=store
        ),
    ):
        raise error("stop here")
    assert find_run(store, name).info.status == status


def test_a_store_that_fails_does_not_hide_why_a_run_failed(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from recgrit.tracking.mlflow_tracker import MLflowTracker

    def end(self: MLflowTracker, status: str) -> None:
        raise TrackingError("the store is gone")

    monkeypatch.setattr(MLflowTracker, "end", end)
    with (
        pytest.raises(ValueError, match="the real cause"),
        start_tracking(
            TrackingConfig(), experiment="films", run_name="twice", default_directory=store
        ),
    ):
        raise ValueError("the real cause")
    assert "the store is gone" in caplog.text


def test_refused_artifacts_and_params_raise(store: Path) -> None:
    with start_tracking(
        TrackingConfig(), experiment="films", run_name="refused", default_directory=store
    ) as tracker:
        with pytest.raises(TrackingError, match=r"refused the artifact .*nowhere\.txt"):
            tracker.log_artifact(store / "nowhere.txt")
        tracker.log_params({"seed": 1})
        with pytest.raises(TrackingError, match="refused settings"):
            tracker.log_params({"seed": 2})


def test_a_named_database_keeps_its_artifacts_beside_it(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/shared/all.db")
    with start_tracking(
        config, experiment="films", run_name="a", default_directory=tmp_path / "unused"
    ) as tracker:
        file = tmp_path / "x.txt"
        file.write_text("x")
        tracker.log_artifact(file)
    assert len(list((tmp_path / "shared" / "mlartifacts").rglob("x.txt"))) == 1
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "http://me:secret@no-such-server.invalid:5000", "gopher://x"]
)
def test_an_unreachable_store_is_refused_at_once(uri: str, tmp_path: Path) -> None:
    with (
        pytest.raises(TrackingError, match=r"(?s)Cannot start a run.*tracking\.uri") as caught,
        start_tracking(
            TrackingConfig(uri=uri), experiment="films", run_name="a", default_directory=tmp_path
        ),
    ):
        pass
    assert uri.rsplit("@", maxsplit=1)[-1] in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_created_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(TrackingError, match="Cannot start a run"),
        start_tracking(
            TrackingConfig(), experiment="films", run_name="a", default_directory=tmp_path / "file"
        ),
    ):
        pass


def test_none_records_nothing(tmp_path: Path) -> None:
    config = load_config(TrackingConfig, overrides=["backend=none"])
    tracker: Tracker
    with start_tracking(
        config, experiment="films", run_name="a", default_directory=tmp_path / "runs"
    ) as tracker:
        assert isinstance(tracker, NullTracker)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend"):
        load_config(TrackingConfig, overrides=["backend=wandb"])


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )


def test_none_imports_nothing_of_mlflow(tmp_path: Path) -> None:
    done = run_python(
        """
        import sys
        from pathlib import Path
        from recgrit.tracking.start import start_tracking
        from recgrit.tracking.config import TrackingConfig

        config = TrackingConfig(backend="none")
        place = {"run_name": "a", "default_directory": Path("runs")}
        with start_tracking(config, experiment="films", **place) as tracker:
            tracker.log_metrics({"loss": 1.0})
        print([name for name in sys.modules if name.startswith("mlflow")])
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "[]"


def test_a_new_store_is_made_in_silence_and_without_telemetry(tmp_path: Path) -> None:
    done = run_python(
        """
        from pathlib import Path
        from recgrit.tracking.start import start_tracking
        from recgrit.tracking.config import TrackingConfig

        place = {"run_name": "a", "default_directory": Path("runs")}
        with start_tracking(TrackingConfig(), experiment="films", **place) as t:
            t.log_metrics({"loss": 1.0}, step=1)
        import mlflow.telemetry.client
        assert mlflow.telemetry.client.get_telemetry_client() is None
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs" / "mlflow.db").is_file()


def test_the_environment_names_the_store_where_settings_do_not(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="recgrit")
    uri = f"sqlite:///{store}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with start_tracking(
        TrackingConfig(), experiment="films", run_name="by environment", default_directory=tmp_path
    ) as tracker:
        assert uri in tracker.location
    assert f"recorded at {uri} (from MLFLOW_TRACKING_URI)" in caplog.text
    assert not (tmp_path / "mlflow.db").exists()
    assert find_run(store, "by environment").info.status == "FINISHED"
    caplog.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with start_tracking(
        TrackingConfig(uri=uri), experiment="films", run_name="by setting", default_directory=store
    ) as tracker:
        assert uri in tracker.location
    assert "MLFLOW_TRACKING_URI" not in caplog.text


def test_a_deleted_experiment_is_named_with_what_restores_it(store: Path) -> None:
    def start(name: str = "gone") -> None:
        with start_tracking(
            TrackingConfig(), experiment=name, run_name="x", default_directory=store
        ):
            pass

    start()
    experiment = client(store).get_experiment_by_name("gone")
    assert experiment is not None
    client(store).delete_experiment(experiment.experiment_id)
    with pytest.raises(
        TrackingError, match=r"'gone' at sqlite.* was deleted.*choose another"
    ) as told:
        start()
    assert f"mlflow experiments restore --experiment-id {experiment.experiment_id}" in str(
        told.value
    )
    assert "Check that the server runs" not in str(told.value), "it does"
    client(store).restore_experiment(experiment.experiment_id)
    start()


def test_curves_of_a_stage_are_logged_to_the_outer_run_too(store: Path) -> None:
    with (
        start_tracking(
            TrackingConfig(), experiment="films", run_name="curves", default_directory=store
        ) as tracker,
        tracker.stage("train") as stage,
    ):
        for step in (1, 2):
            stage.log_metrics({"train/loss": 1 / step}, step=step)
        stage.log_metrics({"seconds": 3.0})
    run = find_run(store, "curves")
    history = client(store).get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    assert "seconds" not in run.data.metrics, "no curve"


def test_a_termination_closes_the_run(store: Path, tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os, signal, time
        from pathlib import Path
        from recgrit.tracking.config import TrackingConfig
        from recgrit.tracking.start import start_tracking
        with start_tracking(TrackingConfig(), experiment="films", run_name="terminated",
                            default_directory=Path({str(store)!r})) as tracker:
            with tracker.stage("train"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
    """)
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert done.returncode == 143
    assert find_run(store, "terminated").info.status == "KILLED"
    assert find_run(store, "terminated/train").info.status == "KILLED"


def test_the_commit_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert find_commit() is None
    who = ("-c", "user.name=me", "-c", "user.email=me@example.com")
    for command in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *command], check=True)
    commit = find_commit()
    assert commit is not None
    assert len(commit) == 40
    monkeypatch.setenv("PATH", "")
    assert find_commit() is None, "without git"
