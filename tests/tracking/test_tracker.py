from pathlib import Path

from recgrit.tracking.tracker import DataOrigin, LoggedMetric, MemoryTracker, NullTracker, Tracker


def fill(tracker: Tracker) -> None:
    tracker.log_params({"retriever": {"epochs": 3}})
    tracker.log_metrics({"valid/recall@10": 0.1}, step=1)
    tracker.log_metrics({"valid/recall@10": 0.2}, step=2)
    tracker.log_metrics({"seconds": 5})
    tracker.log_artifact(Path("report.html"))
    tracker.set_tags({"data": "movielens-100k"})
    tracker.log_data(DataOrigin("movielens-100k", "abc", ["u.data"], {"num_users": 3}))
    tracker.register_model(Path("model"), "films")
    with tracker.stage("train") as stage:
        stage.log_metrics({"loss": 1.0})


def test_memory_keeps_all() -> None:
    tracker = MemoryTracker()
    fill(tracker)
    assert tracker.params == {"retriever.epochs": "3"}
    assert tracker.metrics == [
        LoggedMetric("valid/recall_at_10", 0.1, 1),
        LoggedMetric("valid/recall_at_10", 0.2, 2),
        LoggedMetric("seconds", 5.0, None),
    ]
    assert tracker.latest() == {"valid/recall_at_10": 0.2, "seconds": 5.0}
    assert tracker.artifacts == [Path("report.html")]
    assert tracker.tags == {"data": "movielens-100k"}
    assert tracker.data[0].profile == {"num_users": 3}
    assert tracker.models == {"films": Path("model")}
    assert tracker.stages["train"].latest() == {"loss": 1.0}


def test_null_takes_anything() -> None:
    tracker = NullTracker()
    fill(tracker)
    assert "not tracked" in tracker.location


def test_curves_of_a_stage_are_logged_to_the_run_too() -> None:
    tracker = MemoryTracker()
    with tracker.stage("train") as stage:
        stage.log_metrics({"train/loss": 0.5}, step=3)
        stage.log_metrics({"seconds": 1.0})
    assert tracker.metrics == [LoggedMetric("train/loss", 0.5, 3)]
    assert tracker.register_model(Path("model"), "films") == "models:/films/1"
