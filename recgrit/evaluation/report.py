"""From recommendations to an `EvaluationReport`: numbers, their intervals, and how they were got.

Numbers from different protocols cannot be compared, so the protocol (split, masking, beam width,
order of ties, catalogue) travels with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
from pydantic import Field, field_validator

from recgrit.config import Config
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import ArtifactError, DataError
from recgrit.evaluation.bootstrap import bootstrap_intervals
from recgrit.evaluation.metrics import METRICS, MISSED, PerUser, Ranks, ranks_of_targets

DEFAULT_KS = (5, 10, 20)
DEFAULT_NUM_BOOTSTRAP = 1000

PER_USER_NAME = "per_user.parquet"
REPORT_NAME = "evaluation.json"


class EvaluationConfig(Config):
    """How recommendations are made for evaluation, and what is measured.

    Args:
        ks: List lengths to evaluate at.
        num_bootstrap: Resamples of the users for 95% intervals.
        beam_width: Prefixes kept at each level of the trie.
        exact_users: Users whose beam is compared with exact scores of all items; 0 for none.
    """

    ks: tuple[int, ...] = DEFAULT_KS
    num_bootstrap: int = Field(DEFAULT_NUM_BOOTSTRAP, ge=1)
    beam_width: int = Field(50, ge=1)
    exact_users: int = Field(200, ge=0)

    @field_validator("ks")
    @classmethod
    def _check_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1:
            raise ValueError("list lengths must be positive, for example [5, 10, 20]")
        return tuple(sorted(set(ks)))


@dataclass(frozen=True)
class EvaluationReport:
    """What one model reached on one split, user by user and on average.

    Args:
        per_user: One row per target, of which most protocols have one a user: ``user_idx`` int64,
            ``item_idx`` int32 (the target) and ``rank`` int32 (from 1; 0 where the list lacks the
            target, or there is no list).
        protocol: How the numbers were got: ``split``, ``masked``, ``ks``, ``beam_width``,
            ``ties``, ``num_items``, ``num_users``, ``num_targets``, ``num_bootstrap``, ``seed``.
        means: Mean over targets of each metric, such as ``recall_at_10``.
        bounds: The 95% bootstrap interval of each mean.
    """

    per_user: pl.DataFrame
    protocol: dict[str, Any]
    means: dict[str, float]
    bounds: dict[str, tuple[float, float]]

    @property
    def ranks(self) -> Ranks:
        """int32 [U], the rank of each user's target; 0 where missed."""
        return self.per_user["rank"].to_numpy()

    @property
    def ks(self) -> tuple[int, ...]:
        """The list lengths evaluated at."""
        return tuple(self.protocol["ks"])

    def metrics(self) -> dict[str, float]:
        """Means by name: ``recall_at_5``, ..., ``ndcg_at_20``."""
        return dict(self.means)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals over users, by the same names."""
        return dict(self.bounds)

    def to_polars(self) -> pl.DataFrame:
        """The per-user table with a column for each metric."""
        return self.per_user.with_columns(
            pl.Series(name, values) for name, values in _per_user(self.ranks, self.ks).items()
        )

    def to_pandas(self) -> pd.DataFrame:
        """`to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path) -> None:
        """Write ``per_user.parquet`` and ``evaluation.json``."""
        self.per_user.write_parquet(directory / PER_USER_NAME)
        values = {
            "protocol": self.protocol,
            "metrics": {
                name: {"mean": mean, "low": self.bounds[name][0], "high": self.bounds[name][1]}
                for name, mean in self.means.items()
            },
        }
        text = json.dumps(values, indent=2) + "\n"
        (directory / REPORT_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> EvaluationReport:
        """Read what `save` wrote.

        Raises:
            ArtifactError: A file is missing or cannot be read.
        """
        try:
            values = json.loads((directory / REPORT_NAME).read_text(encoding="utf-8"))
            metrics = values["metrics"]
            return cls(
                per_user=pl.read_parquet(directory / PER_USER_NAME, glob=False),
                # JSON has no tuples, and a report must load equal to the one saved.
                protocol=values["protocol"] | {"ks": tuple(values["protocol"]["ks"])},
                means={name: metric["mean"] for name, metric in metrics.items()},
                bounds={name: (metric["low"], metric["high"]) for name, metric in metrics.items()},
            )
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(
                f"No readable evaluation at {directory}: {error!r}. Expected {REPORT_NAME} and "
                f"{PER_USER_NAME}; run the evaluation again."
            ) from None


def evaluate_recommendations(
    recommendations: Recommendations,
    split: SequenceSplit,
    split_name: Split,
    *,
    masked: bool,
    beam_width: int | Literal["exact"],
    seed: int,
    ks: Iterable[int] = DEFAULT_KS,
    num_bootstrap: int = DEFAULT_NUM_BOOTSTRAP,
    ties: str = "file order",
    users: npt.NDArray[np.int64] | None = None,
) -> EvaluationReport:
    """Compare each user's list with the item the user took next.

    Args:
        recommendations: Lists at least as long as the largest k.
        split: Where the targets stand.
        split_name: Which targets: ``"valid"`` or ``"test"``.
        masked: Whether the items of each user's history were kept out of the lists.
        beam_width: Beam width of the search, or ``"exact"`` where every item was scored.
        seed: Seed of the bootstrap.
        ks: The list lengths to evaluate at.
        num_bootstrap: Number of bootstrap resamples.
        ties: How interactions with equal timestamps were ordered.
        users: Evaluate these users only, int64 [U]; None takes every user with a target. A user
            without a list counts as missed, and a list of any other user is left out.

    Returns:
        The report, its users in ascending order.

    Raises:
        DataError: Lists are shorter than the largest k, hold items outside the catalogue, or a
            user has two; or a user asked for has no target.
    """
    config = EvaluationConfig(ks=tuple(ks), num_bootstrap=num_bootstrap)
    users = split.target_users(split_name) if users is None else np.unique(users)
    _check_users(users, split, split_name)
    _check_lists(recommendations, split, max(config.ks))

    row_of_user = np.full(split.num_sequences, -1, dtype=np.int64)
    row_of_user[recommendations.users] = np.arange(recommendations.num_users)
    has_list = row_of_user[users] >= 0
    targets = split.targets(split_name, users)
    ranks = np.full(len(users), MISSED, dtype=np.int32)
    ranks[has_list] = ranks_of_targets(
        recommendations.items[row_of_user[users[has_list]]], targets[has_list]
    )
    values = _per_user(ranks, config.ks)
    owners = split.owners_of(users)
    return EvaluationReport(
        per_user=pl.DataFrame({"user_idx": owners, "item_idx": targets, "rank": ranks}),
        protocol={
            "split": split_name,
            "masked": masked,
            "ks": config.ks,
            "beam_width": beam_width,
            "ties": ties,
            "num_items": split.num_items,
            "num_users": len(np.unique(owners)),
            "num_targets": len(users),
            "num_bootstrap": num_bootstrap,
            "seed": seed,
        },
        means={name: float(value.mean()) for name, value in values.items()},
        bounds=bootstrap_intervals(ranks, values, num_bootstrap, seed, owners=owners),
    )


def _per_user(ranks: Ranks, ks: Iterable[int]) -> dict[str, PerUser]:
    return {
        f"{name.lower()}_at_{k}": metric(ranks, k) for name, metric in METRICS.items() for k in ks
    }


def _check_users(users: npt.NDArray[np.int64], split: SequenceSplit, split_name: Split) -> None:
    if not len(users):
        raise DataError(
            f"No user to evaluate on {split_name}: nobody has a target there. "
            "A user needs at least three interactions."
        )
    without = np.setdiff1d(users, split.target_users(split_name))
    if len(without):
        raise DataError(
            f"{len(without)} of {len(users)} users have no {split_name} target, the first "
            f"{without[:3].tolist()}. Choose among split.target_users({split_name!r})."
        )


def _check_lists(recommendations: Recommendations, split: SequenceSplit, largest_k: int) -> None:
    needed = min(largest_k, split.num_items)
    if recommendations.top_k < needed:
        raise DataError(
            f"Lists of {recommendations.top_k} items cannot be evaluated at k={largest_k}. "
            f"Recommend {needed} items per user, or leave out the larger k."
        )
    if len(np.unique(recommendations.users)) != recommendations.num_users:
        raise DataError("A user has more than one list of recommendations.")
    for name, values, size in (
        ("user", recommendations.users, split.num_sequences),
        ("item", recommendations.items, split.num_items),
    ):
        if values.size and values.max() >= size:
            raise DataError(
                f"The recommendations name {name}_idx {values.max()}, but the split has "
                f"{size} {name}s: they belong to another data set."
            )
