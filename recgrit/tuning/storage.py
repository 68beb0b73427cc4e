"""The study on disk: opened, or refused where it is about something else."""

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
# Of a trial: the digest of what was tried and reached, by which a change since is seen.
RECORD = "record"
SECONDS = "seconds"
# Trials that are complete before others may be pruned, and the first epoch at which they may be.
FULL_TRIALS = 3
WARMUP_EPOCHS = 3


def identify(config: ExperimentConfig) -> str:
    """What a study is about: settings, and the content of raw files wherever they lie."""
    (prepare,) = plan_stages(config, "prepare")
    apart = ("run", "data", "tracking", "engine")
    values = {name: v for name, v in config.to_values().items() if name not in apart}
    return digest_json([prepare.origin(config).key, values])


def open_study(out: Path) -> optuna.Study:
    """The study in a folder, or a new one.

    Raises:
        ArtifactError: It cannot be read or written, or is not as it was written.
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
    # Of SQLite, SQLAlchemy, JSON and Optuna; each damage has one of its own.
    except Exception as error:
        reason = f"{error}".partition("\n")[0][:200]
        raise ArtifactError(
            f"{path} cannot be opened as a study of trials: {reason}. Choose another folder with "
            "--out, or delete it."
        ) from None
    return study


def record_of(number: int, params: dict[str, Any], state: TrialState, value: float | None) -> str:
    """What `RECORD` says of a trial that ended."""
    return digest_json([number, params, state.name, value])


def _require_sound(path: Path) -> None:
    """Refuse what is no SQLite file, or a damaged one.

    Raises:
        ValueError: It is no regular file, or a damaged database.
        sqlite3.Error: SQLite cannot read it.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise ValueError(str(found).strip())


def _require_recorded(study: optuna.Study) -> None:
    """Refuse a study with values that are not those that were written.

    Raises:
        ValueError: It is.
    """
    seconds = study.user_attrs.get(SECONDS, 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise ValueError(f"its seconds are {seconds!r:.40}")
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        # Optuna gives a pruned trial the value of its last epoch.
        value = trial.value if trial.state == TrialState.COMPLETE else None
        found = record_of(trial.number, trial.params, trial.state, value)
        if trial.user_attrs.get(RECORD) != found:
            raise ValueError(f"its trial {trial.number + 1} changed since it was written")


def require_same(study: optuna.Study, out: Path, name: str, digest: str) -> None:
    """Refuse to resume a study of something else.

    Raises:
        ArtifactError: It is.
    """
    absent = "" if study.trials else digest
    if study.user_attrs.get(name, absent) != digest:
        raise ArtifactError(
            f"{out} holds trials of other settings, other data or another space. Choose another "
            "folder with --out, or delete it."
        )
    study.set_user_attr(name, digest)
