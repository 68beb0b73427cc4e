"""Settings of the tracking; free of MLflow."""

from __future__ import annotations

from typing import Literal

from recgrit.config import Config


class TrackingConfig(Config):
    """Where runs are recorded.

    Attributes:
        backend: ``mlflow``, or ``none`` to record nothing.
        uri: MLflow tracking URI; None takes the one that MLFLOW_TRACKING_URI names in the
            environment, or else keeps a SQLite database in the folder of the runs.
        experiment: MLflow experiment to record runs under; None for one named after the run folder.
        system_metrics: Record processor, memory, disk and network too, every ten seconds.
        register_model: Keep each evaluated run's model, as a new version of the registered model
            that is called like the experiment.
    """

    backend: Literal["mlflow", "none"] = "mlflow"
    uri: str | None = None
    experiment: str | None = None
    system_metrics: bool = True
    register_model: bool = True
