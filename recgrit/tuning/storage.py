"""The tuning study on disk: it is opened, or refused if it is damaged or about something else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from recgrit.checksums import digest_json
from recgrit.errors import ArtifactError
from recgrit.experiment import ExperimentConfig
from recgrit.stages import plan_stages

STUDY_NAME = "study.db"
# Attribute of a trial: digest of its settings and result, by which later changes are noticed.
RECORD = "record"
SECONDS = "seconds"
# Number of trials that have to be complete before a trial may be pruned, and first epoch at which a
# trial may be pruned.
FULL_TRIALS = 3
WARMUP_EPOCHS = 3


def identify(config: ExperimentConfig) -> str:
    """Return a digest of the settings and the raw files' content that a study is about.

    The paths of the raw files, the run folder, the tracker and the engine do not change the digest.
    """
    (prepare,) = plan_stages(config, "prepare")
    apart = ("run", "data", "tracking", "engine")
    values = {name: v for name, v in config.to_values().items() if name not in apart}
    return digest_json([prepare.origin(config).key, values])


def open_study(out: Path) -> optuna.Study:
    """Return the study in a folder, or create a new one.

    Args:
        out: Folder of the tuning.

    Raises:
        ArtifactError: The study cannot be read or written, or was changed after it was written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = (out / STUDY_NAME).absolute()
    try:
        if path.exists():
            _require_sound(path)
        study = optuna.create_study(
            storage=f"sqlite:///{path.as_posix()}",
            study_name="tune",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=FULL_TRIALS, n_warmup_steps=WARMUP_EPOCHS
            ),
            load_if_exists=True,
        )
        _require_recorded(study)
    # SQLite, SQLAlchemy, JSON and Optuna each raise their own exceptions for damaged files.
    except Exception as error:
        reason = f"{error}".partition("\n")[0][:200]
        raise ArtifactError(
            f"{path} cannot be opened as a study of trials: {reason}. Choose another folder with "
            "--out, or delete it."
        ) from None
    return study


def record_of(number: int, params: dict[str, Any], state: TrialState, value: float | None) -> str:
    """Return the digest of a finished trial that is stored as its attribute `RECORD`.

    Args:
        number: Number of the trial.
        params: Values that were drawn, by name of the setting.
        state: State in which the trial ended.
        value: Validation NDCG@10 of a complete trial, and None otherwise.
    """
    return digest_json([number, params, state.name, value])


def _require_sound(path: Path) -> None:
    """Refuse a file that is not an intact SQLite database.

    Raises:
        ValueError: The path is not a regular file, or the database is damaged.
        sqlite3.Error: SQLite cannot read the file.
    """
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise ValueError(str(found).strip())


def _require_recorded(study: optuna.Study) -> None:
    """Refuse a study whose trials differ from their recorded digests.

    Raises:
        ValueError: A trial or the recorded time was changed.
    """
    seconds = study.user_attrs.get(SECONDS, 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise ValueError(f"its recorded seconds are {seconds!r:.40}")
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        # Optuna gives a pruned trial the value of its last epoch.
        value = trial.value if trial.state == TrialState.COMPLETE else None
        found = record_of(trial.number, trial.params, trial.state, value)
        if trial.user_attrs.get(RECORD) != found:
            raise ValueError(f"its trial {trial.number + 1} changed since it was written")


def require_same(study: optuna.Study, out: Path, name: str, digest: str) -> None:
    """Refuse to resume a study that was started with other settings, data or search space.

    Args:
        study: Study to resume.
        out: Folder of the tuning, for messages.
        name: Name of the study's attribute that holds the digest. A new study gets this attribute.
        digest: Digest that the attribute must have.

    Raises:
        ArtifactError: The study has another digest.
    """
    absent = "" if study.trials else digest
    if study.user_attrs.get(name, absent) != digest:
        raise ArtifactError(
            f"{out} holds trials of other settings, other data or another search space. Choose "
            "another folder with --out, or delete this one."
        )
    study.set_user_attr(name, digest)
