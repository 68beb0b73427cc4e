"""Settings of the experiment tracking. This module does not import MLflow."""

from __future__ import annotations

from typing import Literal

from recgrit.config import Config


class TrackingConfig(Config):
    """Settings of the experiment tracking, which records runs in MLflow.

    Attributes:
        backend: Where runs are recorded: ``mlflow``, or ``none`` to record nothing.
        uri: MLflow tracking URI, such as ``http://localhost:5000`` or
            ``sqlite:////runs/mlflow.db``. None uses the URI in the environment variable
            MLFLOW_TRACKING_URI if it is set, and otherwise a SQLite database in the folder of the
            runs.
        experiment: Name of the MLflow experiment that contains the run. None uses the name of the
            run folder.
        system_metrics: Whether to also record the use of processor, memory, disk and network every
            ten seconds.
        register_model: Whether to store the model of each evaluated run as a new version of the
            registered model with the name of the experiment.
    """

    backend: Literal["mlflow", "none"] = "mlflow"
    uri: str | None = None
    experiment: str | None = None
    system_metrics: bool = True
    register_model: bool = True
