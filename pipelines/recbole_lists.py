"""Train a model of RecBole on the files of `recgrit export recbole` and write its test lists.

    python recbole_lists.py FOLDER NAME SASRec --seconds 60 --seed 0 --out OUT

RecBole's interpreter runs this script (see recbole-requirements.txt), so the script imports nothing
of recgrit. It writes three files for the test targets to OUT:

* `lists.csv` has the columns row, user_id, item_id and rank, and holds the ranking that RecBole
  evaluated. A list has 20 items and as many more as the user has interactions, so 20 items are left
  after seen items are filtered out. The row is the number of the target, from 0, in the order of
  the exported test file if there is one.
* `targets.csv` has the targets as lists of one item, and the history that the model read.
* `result.json` has RecBole's own metrics and the figures of the training.

For general models such as BPR, RecBole filters out the user's seen items except the target. For
sequential models it filters nothing out.
"""

import argparse
import contextlib
import csv
import json
import os
import sys
import time
from pathlib import Path

# RecBole's checkpoints hold its own config object, which torch reads only with this setting. Only
# checkpoints of this script are read.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType, get_model, get_trainer, init_logger, init_seed

TOP_K = 20
PARTS = ["train", "valid", "test"]


class BudgetSpent(Exception):  # noqa: N818
    """The time budget is spent. The best model by validation is on disk."""


class UntilDeadline:
    """An iterable of a loader's batches until a deadline, with at least one batch."""

    def __init__(self, loader, deadline):
        self.loader, self.deadline = loader, deadline
        self.num_batches = 0

    def __iter__(self):
        for batch in self.loader:
            yield batch
            self.num_batches += 1
            if time.perf_counter() > self.deadline:
                return


def settings(folder, name, seed, epochs):
    """Return RecBole's settings: the protocol of the exported files, and defaults for the rest."""
    is_plain = (folder / f"{name}.inter").is_file()
    columns = (
        ["user_id", "item_id", "timestamp"] if is_plain else ["user_id", "item_id_list", "item_id"]
    )
    values = {
        "load_col": {"inter": columns, "item": ["item_id"]},
        "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"},
        "metrics": ["Recall", "NDCG"],
        "topk": [10, TOP_K],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
        "epochs": epochs,
        "seed": seed,
        "show_progress": False,
        "checkpoint_dir": "checkpoints",
    }
    if not is_plain:
        values |= {"benchmark_filename": PARTS, "alias_of_item_id": ["item_id_list"]}
    return values


def timed(trainer_class):
    """Return a subclass of RecBole's trainer with a deadline and a callback per evaluated batch."""

    class TimedTrainer(trainer_class):
        deadline = float("inf")
        batches_seen = 0
        on_evaluated = None

        def _train_epoch(self, train_data, *args, **options):
            batches = UntilDeadline(train_data, self.deadline)
            loss = super()._train_epoch(batches, *args, **options)
            self.batches_seen += batches.num_batches
            return loss

        def _full_sort_batch_eval(self, batched_data):
            found = super()._full_sort_batch_eval(batched_data)
            if self.on_evaluated is not None:
                self.on_evaluated(*found)
            return found

        def stop_in_time(self, epoch, score):
            if time.perf_counter() > self.deadline:
                raise BudgetSpent

    return TimedTrainer


class Writer:
    """A callback that writes the lists and targets of each batch that RecBole evaluates."""

    def __init__(self, lists, targets, config, dataset):
        self.lists, self.targets = csv.writer(lists), csv.writer(targets)
        columns = ["row", "user_id", "item_id", "rank"]
        self.lists.writerow(columns)
        self.targets.writerow([*columns, "history"])
        self.num_rows = 0
        self.users, self.items = (dataset.field2id_token[f] for f in ("user_id", "item_id"))
        self.history_field = "item_id" + config["LIST_SUFFIX"]
        self.num_taken = torch.bincount(
            torch.as_tensor(dataset.inter_feat["user_id"]), minlength=len(self.users)
        )

    def __call__(self, interaction, scores, rows, positives):
        """Write the rows of one batch. In both protocols each row has one target."""
        assert rows.tolist() == list(range(len(scores)))
        users = interaction["user_id"].cpu()
        # RecBole's sequences lack the first interaction, which is no target, so one is added.
        lengths = (TOP_K + 1 + self.num_taken[users]).clamp(max=scores.shape[1]).tolist()
        found = torch.topk(scores.cpu(), max(lengths))
        has_history = self.history_field in interaction
        for place, (user, length, target) in enumerate(
            zip(users.tolist(), lengths, positives.tolist(), strict=True)
        ):
            own = (self.num_rows, self.users[user])
            history = interaction[self.history_field][place].tolist() if has_history else []
            seen = " ".join(self.items[item] for item in history if item)
            self.targets.writerow([*own, self.items[target], 1, seen])
            kept = found.indices[place, :length][found.values[place, :length] > -torch.inf]
            for rank, item in enumerate(kept.tolist(), start=1):
                self.lists.writerow([*own, self.items[item], rank])
            self.num_rows += 1


def main():
    """Train the model, evaluate it and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="folder of the exported files, with the name of the data set"
    )
    parser.add_argument("name", help="name of the data set and of its files")
    parser.add_argument("model", help="RecBole's name of the model, such as SASRec, GRU4Rec or BPR")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole would read the options as its own.
    folder, out = options.folder.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)  # RecBole writes its log to the working folder.

    values = settings(folder, options.name, options.seed, options.epochs)
    is_plain = "benchmark_filename" not in values
    model_class = get_model(options.model)
    is_sequential = model_class.type == ModelType.SEQUENTIAL
    if not is_sequential and not is_plain:
        parser.error(f"{options.model} learns from pairs: only plain leave-one-out has them.")
    if is_sequential:
        values["train_neg_sample_args"] = None  # Sequential models have a loss over all items.
    config = Config(model=options.model, dataset=options.name, config_dict=values)
    config["data_path"] = str(folder)  # By default it appends the name of the data set.
    init_seed(options.seed, reproducibility=True)
    init_logger(config)
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(options.seed, reproducibility=True)
    model = model_class(config, train_data._dataset).to(config["device"])
    trainer = timed(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    started = time.perf_counter()
    trainer.deadline = started + options.seconds
    with contextlib.suppress(BudgetSpent):
        trainer.fit(train_data, valid_data, callback_fn=trainer.stop_in_time)
    seconds = time.perf_counter() - started
    with (
        Path("lists.csv").open("w", newline="") as lists,
        Path("targets.csv").open("w", newline="") as targets,
    ):
        trainer.on_evaluated = Writer(lists, targets, config, dataset)
        metrics = trainer.evaluate(test_data)
    result = {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "masked": not is_sequential,
        "fit_seconds": seconds,
        "epochs": round(trainer.batches_seen / len(train_data), 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_items": dataset.item_num - 1,
        "num_train": len(train_data._dataset),
    }
    Path("result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
