"""Compare warm-started training with training from scratch, day by day of a replayed log.

    python pipelines/warm_days.py configs/movielens-1m.yaml data.path=ml-1m.zip \
        retriever.epochs=10 --users 0.2 --window-days 7 --warm-epochs 2 --out runs/warm-days

The last part of the log is split into successive windows of time ("days"). Each window has three
models:

* `full` is trained from scratch on all interactions before the window.
* `warm` starts from the `warm` model of the previous window and trains a few more epochs
  (`retriever.init_from`) on the same interactions as `full`.
* `stale` is the model from before the first window. It is never trained again.

The targets are the items that users interact with in the window, one after the other. The history
of a target is everything that the user interacted with before it. Differences are paired by target,
with 95% intervals over users. There is one seed, so the intervals do not cover other seeds.

OUT/days.md is the table of results, and OUT/days.json has its numbers. The models are ordinary runs
in OUT/day-N/full and OUT/day-N/warm, so the same command resumes a stopped comparison. The time of
a model is the time of its stages, from `prepare` to `train`.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import typer

from recgrit.config import load_config
from recgrit.data.recommendations import NO_ITEM
from recgrit.disk import replacing, write_atomic
from recgrit.errors import ConfigError, DataError, RecgritError
from recgrit.evaluation.metrics import Ranks, ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.evaluation.paired import PairedDifference, mean_over_seeds, paired_difference
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run

logger = logging.getLogger("warm_days")

TOP_K = 10
ROWS = ("full", "warm", "stale")
STAGES = ("prepare", "embed", "tokenize", "train")
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Window:
    """A window of time with its targets and their histories.

    Args:
        start: First day of the window, in UTC.
        end: First day after the window, in UTC.
        histories: Item ids that the user interacted with before each target, oldest first.
        targets: Item ids of the targets.
        users: Number of the user of each target.
    """

    start: dt.date
    end: dt.date
    histories: list[list[str]]
    targets: list[str]
    users: npt.NDArray[np.int64]


def write_log(
    config: Path, overrides: Sequence[str], out: Path, *, users: float, seed: int
) -> pl.DataFrame:
    """Write the log of randomly drawn users and the item table as files, and return the log.

    Args:
        config: YAML file of the experiment.
        overrides: Settings that override those of the file.
        out: Folder of the comparison.
        users: Share of users to draw, from 0 to 1.
        seed: Seed of the draw.

    Raises:
        ConfigError: No user is drawn.
    """
    place = f"run.dir={json.dumps(str(out / 'log'))}"
    experiment = load_config(ExperimentConfig, config, [*overrides, place, "tracking.backend=none"])
    run_experiment(experiment, until="prepare")
    data = Run(experiment.run.dir).data
    interactions = data.interactions
    drawn = np.random.default_rng(seed).random(interactions.num_users) < users
    if not drawn.any():
        raise ConfigError(f"--users {users} draws none of {interactions.num_users} users.")
    frame = interactions.frame
    log = frame.filter(pl.Series(drawn[frame["user_idx"].to_numpy()]))
    named = log.select(
        interactions.user_ids.gather(log["user_idx"]).alias("user_id"),
        interactions.item_ids.gather(log["item_idx"]).alias("item_id"),
        "timestamp",
        "user_idx",
    )
    for name, frame in (("events", named.drop("user_idx")), ("items", data.items.frame)):
        with replacing(out / f"{name}.parquet") as temporary:
            frame.write_parquet(temporary)
    return named


def choose_days(times: npt.NDArray[np.int64], *, days: int, length: int, least: int) -> list[int]:
    """Choose the latest successive windows that have enough events each, and return their starts.

    Args:
        times: Times of all events, in seconds since 1970.
        days: Number of windows.
        length: Length of a window, in days.
        least: Fewest events of a window.

    Returns:
        ``days + 1`` numbers of days since 1970: the start of each window and the end of the last.

    Raises:
        DataError: The log has no such windows.
    """
    day_of = times // DAY_SECONDS
    first, last = int(day_of.min()), int(day_of.max())
    per_day = np.bincount(day_of - first)
    for start in range(last + 1 - days * length, first, -1):
        edges = [start + length * number for number in range(days + 1)]
        counts = np.add.reduceat(per_day[: edges[-1] - first], np.array(edges[:-1]) - first)
        if min(counts) >= least:
            return edges
    raise DataError(
        f"The log has no {days} successive windows of {length} days with {least:,} events each. "
        "Lower --min-events, raise --window-days, or take more users."
    )


def cut_window(log: pl.DataFrame, start: int, end: int, *, most: int) -> Window:
    """Collect the first targets in a window of each user who has earlier interactions.

    Args:
        log: Log of `write_log`, with each user's rows in order of time.
        start: First day of the window, in days since 1970.
        end: First day after the window, in days since 1970.
        most: Most targets of one user.
    """
    days = log["timestamp"] // DAY_SECONDS
    histories, targets, users = [], [], []
    rows = log.with_columns(day=days).filter(pl.col("day") < end)
    for (user,), of_user in rows.group_by("user_idx", maintain_order=True):
        items, num_before = of_user["item_id"].to_list(), int((of_user["day"] < start).sum())
        if num_before:
            for place in range(num_before, min(len(items), num_before + most)):
                histories.append(items[:place])
                targets.append(items[place])
                users.append(user)
    return Window(
        start=_date(start),
        end=_date(end),
        histories=histories,
        targets=targets,
        users=np.array(users, dtype=np.int64),
    )


def rank_targets(run: Run, window: Window) -> Ranks:
    """Return the rank of each target in a list of ten items, from 1.

    The rank is 0 if the list lacks the target, or if there is no list.
    """
    recommender = run.recommender()
    found = recommender.rank_histories(window.histories, top_k=TOP_K)
    lists = np.full((len(window.targets), TOP_K), NO_ITEM, dtype=np.int32)
    lists[found.users, : found.items.shape[1]] = found.items
    places = {name: place for place, name in enumerate(recommender.items.item_ids)}
    targets = [places.get(target, NO_ITEM) for target in window.targets]
    return ranks_of_targets(lists, np.array(targets, dtype=np.int32))


def seconds_of(run: Run) -> float:
    """Return the seconds that the stages of a run took when they were built."""
    return sum(run.manifest(stage).seconds for stage in STAGES)


class Days:
    """The trained models of each window.

    Args:
        config: YAML file of the experiment.
        overrides: Settings that override those of the file.
        out: Folder of the comparison.
        warm_epochs: Number of epochs of a warm-started training.
    """

    def __init__(
        self, config: Path, overrides: Sequence[str], out: Path, *, warm_epochs: int
    ) -> None:
        self.config = config
        self.overrides = overrides
        self.out = out
        self.warm_epochs = warm_epochs

    def full(self, day: int, until: dt.date) -> Run:
        """Return the run of the model that is trained from scratch on interactions before a day."""
        return self._train(day, "full", until, {})

    def warm(self, day: int, until: dt.date, source: Run) -> Run:
        """Return the run of the model that starts from the weights of another run.

        Args:
            day: Number of the window.
            until: Day that the training interactions precede.
            source: Run to start from.
        """
        settings = {
            "retriever.init_from": str(source.directory),
            "retriever.epochs": self.warm_epochs,
        }
        return self._train(day, "warm", until, settings)

    def _train(self, day: int, name: str, until: dt.date, settings: dict[str, Any]) -> Run:
        places = {
            "data.source": "table",
            "data.path": str(self.out / "events.parquet"),
            "data.table.items_path": str(self.out / "items.parquet"),
            "data.table.time_unit": "s",
            "data.until": until.isoformat(),
            "run.dir": str(self.out / f"day-{day}" / name),
            "run.cache_dir": str(self.out / ".cache"),
            "tracking.backend": "none",
            **settings,
        }
        last = [f"{key}={json.dumps(value)}" for key, value in places.items()]
        experiment = load_config(ExperimentConfig, self.config, [*self.overrides, *last])
        logger.info("day %d, %s: the log before %s", day, name, until)
        run_experiment(experiment, until="train")
        return Run(experiment.run.dir)


def show(found: PairedDifference) -> str:
    """Format a mean with its interval."""
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"


def render(records: Sequence[dict[str, Any]], total: dict[str, Any], *, price: float) -> str:
    """Return the table of results in Markdown.

    Args:
        records: Results of each window.
        total: Results over all windows.
        price: Price of an hour of the machine.
    """
    lines = [
        "| window | targets (users) | model | Recall@10 | NDCG@10 | NDCG@10, less `full` | minutes "
        "| cost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in [*records, total]:
        for row in ROWS:
            of_row = record["models"][row]
            less = "" if row == "full" else show(PairedDifference(**of_row["less_full"]))
            lines.append(
                f"| {record['window']} | {record['targets']:,} ({record['users']:,}) | {row} "
                f"| {of_row['recall']:.4f} | {show(PairedDifference(**of_row['ndcg']))} | {less} "
                f"| {of_row['seconds'] / 60:.1f} | {of_row['seconds'] / 3600 * price:.4f} |"
            )
    return "\n".join(lines) + "\n"


def measure(
    window: str,
    ranks: dict[str, Ranks],
    users: npt.NDArray[np.int64],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return quality and time of all models in one window, or over all windows.

    Args:
        window: Name of the window.
        ranks: Ranks of the targets by model.
        users: Number of the user of each target.
        seconds: Seconds of training by model.
    """
    ndcg = {row: ndcg_at_k(of_row, TOP_K)[None] for row, of_row in ranks.items()}
    return {
        "window": window,
        "targets": len(users),
        "users": len(np.unique(users)),
        "models": {
            row: {
                "recall": float(recall_at_k(ranks[row], TOP_K).mean()),
                "ndcg": asdict(mean_over_seeds(ndcg[row], owners=users)),
                "less_full": asdict(paired_difference(ndcg[row], ndcg["full"], owners=users)),
                "seconds": seconds[row],
            }
            for row in ROWS
        },
    }


def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further settings as key=value.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Number of windows.")] = 7,
    window_days: Annotated[int, typer.Option(min=1, help="Days per window.")] = 1,
    min_events: Annotated[int, typer.Option(min=1, help="Fewest events per window.")] = 1000,
    max_targets: Annotated[
        int, typer.Option(min=1, help="Most targets of a user per window.")
    ] = 20,
    users: Annotated[float, typer.Option(min=0, max=1, help="Share of users to draw.")] = 1.0,
    warm_epochs: Annotated[int, typer.Option(min=1, help="Epochs of a warm-started training.")] = 2,
    price: Annotated[float, typer.Option(min=0, help="Price of a machine hour.")] = 0.1,
    out: Annotated[Path, typer.Option(help="Folder of runs and table.")] = Path("runs/warm-days"),
) -> None:
    """Train the models that are missing, measure all of them and write the table."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out.mkdir(parents=True, exist_ok=True)
    log = write_log(config, overrides or [], out, users=users, seed=0)
    edges = choose_days(
        log["timestamp"].to_numpy(), days=days, length=window_days, least=min_events
    )
    models = Days(config, overrides or [], out, warm_epochs=warm_epochs)
    # `warm` and `stale` start from a model of the day before the first window.
    stale = warm = models.full(0, _date(edges[0] - window_days))
    ranks: dict[str, list[Ranks]] = {row: [] for row in ROWS}
    total: dict[str, float] = dict.fromkeys(ROWS, 0.0)
    records, owners = [], []
    for day, (start, end) in enumerate(itertools.pairwise(edges), start=1):
        window = cut_window(log, start, end, most=max_targets)
        full = models.full(day, window.start)
        warm = models.warm(day, window.start, warm)
        runs = {"full": full, "warm": warm, "stale": stale}
        found = {row: rank_targets(run, window) for row, run in runs.items()}
        seconds = {"full": seconds_of(full), "warm": seconds_of(warm), "stale": 0.0}
        name = f"{window.start} to {window.end}"
        records.append(measure(name, found, window.users, seconds))
        for row in ROWS:
            ranks[row].append(found[row])
            total[row] += seconds[row]
        owners.append(window.users)
        together = {row: np.concatenate(ranks[row]) for row in ROWS}
        last = measure("all", together, np.concatenate(owners), total)
        write_atomic(out / "days.json", json.dumps([*records, last], indent=1))
        write_atomic(out / "days.md", render(records, last, price=price))
    print(render(records, last, price=price))


def _date(day: int) -> dt.date:
    return dt.date(1970, 1, 1) + dt.timedelta(days=day)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
