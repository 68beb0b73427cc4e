"""Settings of the evaluation."""

from __future__ import annotations

from pydantic import Field, field_validator

from recgrit.config import Config

DEFAULT_KS = (5, 10, 20)
DEFAULT_NUM_BOOTSTRAP = 1000
MAX_BEAM_WIDTH = 100_000
MAX_K = 1_000_000


class EvaluationConfig(Config):
    """Settings for what is measured, and for how the measured lists are made.

    Args:
        ks: List lengths (k) at which the metrics are computed, such as ``[5, 10, 20]``.
        num_bootstrap: Number of bootstrap resamples of the users for the 95% intervals. More
            resamples make the bounds of the intervals more precise and take more time.
        beam_width: Number of prefixes that the beam search keeps at each level of the trie. The
            search keeps at least two prefixes per listed item, even if this number is smaller. A
            larger beam finds more of the best items and is slower.
        baselines: Names of models that are fitted and measured for comparison with the run's model,
            such as ``popularity``. Empty measures the run's model alone.
        segments: Columns of the users' table, such as ``[country]``. The metrics are also reported
            for the users of each value.
        folds: Number of consecutive test windows of a temporal split. The run tests on the last
            window, and ``recgrit run`` and ``recgrit evaluate`` make a further run for each earlier
            window. 1 tests on one window.
        exact_users: Number of test users for whom the lists of the beam search are compared with
            the lists by exact scores of all items. 0 makes no comparison.
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
