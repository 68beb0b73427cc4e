"""Settings of the evaluation."""

from __future__ import annotations

from pydantic import Field, field_validator

from recgrit.config import Config

DEFAULT_KS = (5, 10, 20)
DEFAULT_NUM_BOOTSTRAP = 1000
MAX_BEAM_WIDTH = 100_000
MAX_K = 1_000_000


class EvaluationConfig(Config):
    """How recommendations are made for evaluation, and what is measured.

    Args:
        ks: List lengths to evaluate at.
        num_bootstrap: Resamples of the users for 95% intervals.
        beam_width: Prefixes kept at each level of the trie, at least twice as many as items are
            asked for.
        baselines: Kinds of the models that are fitted and measured beside the run's own.
        segments: Columns of the users' table; metrics are reported for each of their values too.
        folds: Windows of test, one after another, of a temporal split: the run tests on the last,
            and a run of its own is made for each window before it (``run`` and ``evaluate``).
        exact_users: Users whose beam is compared with exact scores of all items; 0 for none.
    """

    ks: tuple[int, ...] = DEFAULT_KS
    num_bootstrap: int = Field(DEFAULT_NUM_BOOTSTRAP, ge=1, le=1_000_000)
    beam_width: int = Field(50, ge=1, le=MAX_BEAM_WIDTH)
    baselines: tuple[str, ...] = ("popularity", "item_knn")
    segments: tuple[str, ...] = ()
    folds: int = Field(1, ge=1, le=50)
    exact_users: int = Field(200, ge=0)

    @field_validator("ks")
    @classmethod
    def _check_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1:
            raise ValueError("list lengths must be positive, for example [5, 10, 20]")
        if max(ks) > MAX_K:
            raise ValueError(f"list lengths must be at most {MAX_K:,}")
        return tuple(sorted(set(ks)))
