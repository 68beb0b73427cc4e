"""The `EvaluationReport` of a model's lists: metrics, their intervals, and the protocol.

Metrics under different protocols cannot be compared. The report therefore contains the protocol:
the split, whether seen items are filtered out, the search, the order of ties and the catalogue.

Shapes: T targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from recgrit.data.config import DataConfig
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import ArtifactError, DataError
from recgrit.evaluation.bootstrap import bootstrap_intervals
from recgrit.evaluation.config import DEFAULT_KS, DEFAULT_NUM_BOOTSTRAP, EvaluationConfig
from recgrit.evaluation.metrics import (
    METRICS,
    MISSED,
    SERENDIPITY,
    PerTarget,
    Ranks,
    popularity_ranks,
    ranks_of_targets,
    serendipity_at_k,
)

PER_TARGET_NAME = "per_target.parquet"
REPORT_NAME = "evaluation.json"
_PER_TARGET = {
    "user_idx": pl.Int64,
    "sequence": pl.Int64,
    "item_idx": pl.Int32,
    "rank": pl.Int32,
    "popularity_rank": pl.Int32,
}
# Tolerance in the comparison of means, because machines may add numbers in another order.
ROUNDING = 1e-9


class ReportKey(NamedTuple):
    """The key of a report among the reports of a run.

    Args:
        model: Name of the model in the run, such as ``trie`` or ``popularity``.
        split: Part of the split whose targets were evaluated, ``valid`` or ``test``.
        masked: Whether seen items were filtered out of the lists.
    """

    model: str
    split: Split
    masked: bool

    @classmethod
    def of_folder(cls, path: Path) -> ReportKey:
        """Return the key of the report in a folder, from the folder's path."""
        split: Split = "valid" if path.name.startswith("valid") else "test"
        return cls(path.parent.name, split, path.name.endswith("_masked"))

    @property
    def folder(self) -> str:
        """Relative folder of the report among a run's reports, such as ``trie/test_masked``."""
        return f"{self.model}/{self.lists}"

    @property
    def lists(self) -> str:
        """Name of the evaluated lists without the model, such as ``test_masked``."""
        return f"{self.split}_masked" if self.masked else self.split


class _Metric(BaseModel):
    """The mean and the interval of a metric in a saved report; NaN bounds mean no interval."""

    model_config = ConfigDict(strict=True, extra="forbid")

    mean: float
    low: float
    high: float


class _Protocol(BaseModel):
    model_config = ConfigDict(strict=True)

    split: Literal["valid", "test"]
    masked: bool
    ks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    search: str
    ties: str
    num_items: Annotated[int, Field(ge=1)]
    num_users: Annotated[int, Field(ge=1)]
    num_targets: Annotated[int, Field(ge=1)]
    num_bootstrap: Annotated[int, Field(ge=1, le=1_000_000)]
    seed: Annotated[int, Field(ge=0)]


class _Saved(BaseModel):
    """The contents of the JSON file of a saved report."""

    model_config = ConfigDict(strict=True, extra="forbid")

    protocol: _Protocol
    metrics: dict[str, _Metric]


@dataclass(frozen=True)
class EvaluationReport:
    """The results of one model on one split, for each target and as means.

    Args:
        per_target: Table with one row per target and these columns:

            - ``user_idx`` (int64): the user of the target;
            - ``sequence`` (int64): the row of the split that ends with the target, which equals
              ``user_idx`` if each user has one target;
            - ``item_idx`` (int32): the target;
            - ``rank`` (int32): the rank of the target in its list, counted from 1, and 0 if the
              target is not listed or there is no list;
            - ``popularity_rank`` (int32): the rank of the target among all items by training
              interactions.
        protocol: Conditions of the measurement: ``split``, ``masked``, ``ks``, ``search``,
            ``ties``, ``num_items``, ``num_users``, ``num_targets``, ``num_bootstrap`` and ``seed``.
        means: Mean of each metric over the targets, by names such as ``recall_at_10``.
        bounds: 95% bootstrap interval of each mean, by the same names. The bootstrap draws users,
            each with all of the user's targets.
    """

    per_target: pl.DataFrame
    protocol: dict[str, Any]
    means: dict[str, float]
    bounds: dict[str, tuple[float, float]]

    @property
    def ranks(self) -> Ranks:
        """Rank of each target in its list, int32 ``[T]``; 0 if it is not listed."""
        return self.per_target["rank"].to_numpy()

    @property
    def users(self) -> npt.NDArray[np.int64]:
        """User of each target by ``user_idx``, int64 ``[T]``."""
        return self.per_target["user_idx"].to_numpy()

    @property
    def sequences(self) -> npt.NDArray[np.int64]:
        """Row of the split that ends with each target, int64 ``[T]``."""
        return self.per_target["sequence"].to_numpy()

    @property
    def ks(self) -> tuple[int, ...]:
        """List lengths at which the metrics are computed."""
        return tuple(self.protocol["ks"])

    def metrics(self) -> dict[str, float]:
        """Return the mean of each metric by name, from ``recall_at_5`` to ``serendipity_at_20``."""
        return dict(self.means)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95% bootstrap interval of each metric's mean, by the names of `metrics`."""
        return dict(self.bounds)

    def require_targets_of(self, split: SequenceSplit) -> None:
        """Check that the targets of this report are targets of a split.

        Raises:
            DataError: The report has other targets.
        """
        name = self.protocol["split"]
        _check_sequences(self.sequences, split, name)
        items = self.per_target["item_idx"].to_numpy()
        if not np.array_equal(split.targets(name, self.sequences), items) or not np.array_equal(
            split.owners_of(self.sequences), self.users
        ):
            raise DataError(f"The report on {name} has other targets than the run has on {name}.")

    def _check(self) -> None:
        """Check that table, protocol, means and intervals of a loaded report fit together.

        Raises:
            ValueError: They do not fit together.
        """
        protocol, frame = self.protocol, self.per_target
        if dict(frame.schema) != _PER_TARGET or any(frame.null_count().row(0)):
            raise ValueError(f"expected the columns {', '.join(_PER_TARGET)} without nulls")
        if frame.height != protocol["num_targets"] or not frame.height:
            raise ValueError(f"got {frame.height} targets, expected {protocol['num_targets']}")
        if int(self.ranks.min()) < MISSED or len(np.unique(self.sequences)) != frame.height:
            raise ValueError("a rank is negative, or a target appears twice")
        values = _metrics_of(frame, self.ks, protocol["num_items"])
        if self.means.keys() != values.keys() or any(
            # Written with "not", so that a NaN, which compares false with everything, is refused.
            not abs(self.means[name] - value.mean()) <= ROUNDING
            for name, value in values.items()
        ):
            raise ValueError("the metrics do not match the ranks")
        for name, (low, high) in self.bounds.items():
            # Both bounds are NaN if there are too few users for an interval.
            if not (0 <= low <= high <= 1 or (np.isnan(low) and np.isnan(high))):
                raise ValueError(f"the interval of {name} is {low} to {high}")

    def of_targets(self, members: npt.NDArray[np.bool_]) -> EvaluationReport:
        """Return the report on some of the targets, with newly computed means and intervals.

        Args:
            members: bool ``[T]``, true for the targets of the new report. At least one is true.
        """
        per_target = self.per_target.filter(pl.Series(members))
        protocol = self.protocol | {
            "num_users": per_target["user_idx"].n_unique(),
            "num_targets": per_target.height,
        }
        return EvaluationReport(per_target, protocol, *_summarize(per_target, protocol))

    def to_polars(self) -> pl.DataFrame:
        """Return the table of targets with one more column for each metric."""
        return self.per_target.with_columns(
            pl.Series(name, values)
            for name, values in _metrics_of(
                self.per_target, self.ks, self.protocol["num_items"]
            ).items()
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the table of `to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path) -> None:
        """Write the report to ``per_target.parquet`` and ``evaluation.json`` in a folder."""
        self.per_target.write_parquet(directory / PER_TARGET_NAME)
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
        """Load a report from the files that `save` wrote.

        Raises:
            ArtifactError: A file is missing or cannot be read, or the parts of the report do not
                fit together.
        """
        try:
            values = json.loads((directory / REPORT_NAME).read_text(encoding="utf-8"))
            found = _Saved.model_validate(values)
            report = cls(
                per_target=pl.read_parquet(directory / PER_TARGET_NAME, glob=False),
                # JSON has no tuples, and a report must load equal to the one saved.
                protocol=values["protocol"] | {"ks": tuple(found.protocol.ks)},
                means={name: metric.mean for name, metric in found.metrics.items()},
                bounds={name: (metric.low, metric.high) for name, metric in found.metrics.items()},
            )
            report._check()
            return report
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(
                f"No readable evaluation at {directory}: {error!r}. Expected {REPORT_NAME} and "
                f"{PER_TARGET_NAME}; run the evaluation again."
            ) from None


def describe_search(beam_width: int | None) -> str:
    """Return how a model's lists were found, as text for the protocol of a report.

    Args:
        beam_width: Number of prefixes that the beam search kept. None if all items were scored.

    >>> describe_search(50), describe_search(None)
    ('beam of 50', 'all items scored')
    """
    return "all items scored" if beam_width is None else f"beam of {beam_width}"


def describe_ties(data: DataConfig) -> str:
    """Return how interactions with equal timestamps were ordered, as text for the protocol.

    Args:
        data: Settings of the run's data.

    >>> describe_ties(DataConfig())
    'file order'
    """
    return "file order" if data.ties == "file" else f"shuffled with seed {data.tie_seed}"


def evaluate_recommendations(
    recommendations: Recommendations,
    split: SequenceSplit,
    split_name: Split,
    *,
    masked: bool,
    search: str,
    ties: str,
    seed: int,
    ks: Iterable[int] = DEFAULT_KS,
    num_bootstrap: int = DEFAULT_NUM_BOOTSTRAP,
    sequences: npt.NDArray[np.int64] | None = None,
) -> EvaluationReport:
    """Evaluate recommendation lists against the items that the users interacted with next.

    Args:
        recommendations: Lists by sequence of the split, at least as long as the largest k or, if
            the catalogue is smaller, as the catalogue.
        split: Split that holds the targets.
        split_name: Part of the split whose targets are used, ``"valid"`` or ``"test"``.
        masked: Whether seen items were filtered out of the lists.
        search: How the lists were found, for the protocol: `describe_search` for a model of
            recgrit, or a text such as ``"lists from sasrec.csv"`` for other lists.
        ties: How interactions with equal timestamps were ordered, for the protocol; see
            `describe_ties`.
        seed: Seed of the bootstrap.
        ks: List lengths at which the metrics are computed.
        num_bootstrap: Number of bootstrap resamples.
        sequences: Sequences to evaluate, int64 ``[T]``. A sequence without a list counts as missed.
            Lists of other sequences are ignored. None evaluates every sequence with a target.

    Returns:
        The report, with sequences in ascending order.

    Raises:
        DataError: Lists are too short, contain items outside the catalogue, or are given twice for
            a sequence; or a sequence to evaluate has no target; or there is none to evaluate.
    """
    config = EvaluationConfig(ks=tuple(ks), num_bootstrap=num_bootstrap)
    sequences = split.target_users(split_name) if sequences is None else np.unique(sequences)
    _check_sequences(sequences, split, split_name)
    _check_lists(recommendations, split, max(config.ks))

    list_of = np.full(split.num_sequences, -1, dtype=np.int64)
    list_of[recommendations.users] = np.arange(recommendations.num_users)
    has_list = list_of[sequences] >= 0
    targets = split.targets(split_name, sequences)
    ranks = np.full(len(sequences), MISSED, dtype=np.int32)
    ranks[has_list] = ranks_of_targets(
        recommendations.items[list_of[sequences[has_list]]], targets[has_list]
    )
    owners = split.owners_of(sequences)
    popularity = popularity_ranks(split.train_item_counts())
    per_target = pl.DataFrame(
        {
            "user_idx": owners,
            "sequence": sequences,
            "item_idx": targets,
            "rank": ranks,
            "popularity_rank": popularity[targets],
        }
    )
    protocol = {
        "split": split_name,
        "masked": masked,
        "ks": config.ks,
        "search": search,
        "ties": ties,
        "num_items": split.num_items,
        "num_users": len(np.unique(owners)),
        "num_targets": len(sequences),
        "num_bootstrap": num_bootstrap,
        "seed": seed,
    }
    return EvaluationReport(per_target, protocol, *_summarize(per_target, protocol))


def _metrics_of(
    per_target: pl.DataFrame, ks: Iterable[int], num_items: int
) -> dict[str, PerTarget]:
    """Return the values of all metrics for each target, float64 ``[T]``, by name."""
    ranks = per_target["rank"].to_numpy()
    popularity = per_target["popularity_rank"].to_numpy()
    found = {
        f"{name.lower()}_at_{k}": metric(ranks, k) for name, metric in METRICS.items() for k in ks
    }
    return found | {
        f"{SERENDIPITY.lower()}_at_{k}": serendipity_at_k(ranks, popularity, k, num_items)
        for k in ks
    }


def _summarize(
    per_target: pl.DataFrame, protocol: dict[str, Any]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the mean and the 95% interval of each metric, by name."""
    values = _metrics_of(per_target, protocol["ks"], protocol["num_items"])
    by_rank = {name: found for name, found in values.items() if not _is_serendipity(name)}
    others = {name: found for name, found in values.items() if _is_serendipity(name)}
    ranks, owners = per_target["rank"].to_numpy(), per_target["user_idx"].to_numpy()
    draws, seed = protocol["num_bootstrap"], protocol["seed"]
    # Serendipity depends on the rank and on the popularity rank. Targets with equal pairs of both
    # get equal numbers, and so do all missed targets, because their serendipity is 0.
    popularity = per_target["popularity_rank"].to_numpy().astype(np.int64)
    pairs = np.where(ranks == MISSED, 0, ranks * (protocol["num_items"] + 2) + popularity)
    kinds = np.unique(pairs, return_inverse=True)[1].astype(np.int32)
    bounds = bootstrap_intervals(ranks, by_rank, draws, seed, owners=owners)
    bounds |= bootstrap_intervals(kinds, others, draws, seed, owners=owners)
    return {name: float(found.mean()) for name, found in values.items()}, bounds


def _is_serendipity(name: str) -> bool:
    return name.startswith(SERENDIPITY.lower())


def _check_sequences(
    sequences: npt.NDArray[np.int64], split: SequenceSplit, split_name: Split
) -> None:
    if not len(sequences):
        raise DataError(
            f"No user to evaluate on {split_name}: nobody has a target there. "
            "A user needs at least three interactions."
        )
    without = np.setdiff1d(sequences, split.target_users(split_name))
    if len(without):
        raise DataError(
            f"{len(without)} of {len(sequences)} users have no {split_name} target, the first "
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
