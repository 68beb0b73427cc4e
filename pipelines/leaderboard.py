"""Who recommends best? All models on one split, read by one evaluation.

    python pipelines/leaderboard.py configs/amazon2014-beauty.yaml data.path=/path/to/files

Parts, in the order they run:

* `choice`: candidate settings of each model by validation, on a seed that is not reported;
* `board`: all models and ablations, on validation and test, the history masked and not;
* `cold`: 5% of the items held out of training, Recall@10 on the targets among them.

Every finished cell is a row of `OUT/PART.parquet` at once: a stopped run goes on where it was, and
several processes may work on different models or seeds. Trainings are kept too: a stopped one goes
on after its last epoch, and rows that read one training in two ways, such as by another beam width,
share it. Token-level models get as much time as recgrit took on the same data, or four times as
much. `leaderboard_report.py` makes the tables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import torch
import typer

from recgrit.artifacts import digest_json
from recgrit.baselines.item_knn import ItemKNN
from recgrit.baselines.popularity import recommend_popular
from recgrit.baselines.sasrec import SASRecRanker, build_sasrec
from recgrit.baselines.token_models import DecoderOnly, EncoderDecoder, TokenRanker
from recgrit.cells import Cell, CellTable
from recgrit.config import load_config
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import ConfigError, RecgritError
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.experiment import ExperimentConfig
from recgrit.retrieval.config import TrainingConfig, TransformerConfig
from recgrit.retrieval.fit import fit_retriever
from recgrit.retrieval.fusion import FusedRanker
from recgrit.retrieval.neighbours import ItemNeighbours
from recgrit.retrieval.ranking import Ranker
from recgrit.retrieval.recommend import recommend_items
from recgrit.retrieval.training import Trained, train_model
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.running import run_experiment
from recgrit.runs import Run
from recgrit.semantic_ids.trie import build_trie

TOP_K = 20
COLD_SHARE = 0.05
CHOICE_SEED = 100
# Apart from each other, so that no two rows share a model.
FUSED_SEEDS = 1000
# Recommends so many items for so many users, unmasked and masked, of a split.
Recommend = Callable[[Split, "np.ndarray", bool], Recommendations]


@dataclass(frozen=True)
class Fitted:
    """A trained model, and what is to be said of it."""

    recommend: Recommend
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a model is fitted with."""

    config: ExperimentConfig
    run: Run
    split: SequenceSplit
    seconds: float | None = None

    def checkpoint(self, model: str, settings: TrainingConfig) -> Path:
        """Where the training of a model with these settings, on these IDs, is kept."""
        key = digest_json(
            [self.run.manifest("tokenize").fingerprint, settings.model_dump(mode="json")]
        )
        return self.config.run.dir / "trainings" / f"{model}-{key[:16]}.safetensors"


def fit_popularity(context: Context) -> Fitted:
    """The most popular items."""
    return Fitted(
        lambda name, users, masked: recommend_popular(context.split, name, users, TOP_K, masked)
    )


def fit_item_knn(context: Context, **settings: Any) -> Fitted:
    """Cosine between items."""
    return _with_ranker(context, ItemKNN(context.split, **settings))


def fit_sasrec(context: Context, neighbours: bool = False, **settings: Any) -> Fitted:
    """SASRec with full-softmax cross-entropy, and recgrit's neighbours beside the trained model."""
    counted = None
    if neighbours:
        ours = context.config.retriever
        counted = ItemNeighbours(
            context.split.num_items, weight=ours.neighbour_weight, boost=ours.neighbour_boost
        )
        counted.count(context.split)
    config = TransformerConfig(**settings)
    trained = train_model(
        lambda: build_sasrec(context.split, config),
        lambda model, precision: SASRecRanker(model, precision=precision),
        context.split,
        config,
        history_length=config.history_length,
        seed=context.config.seed,
        checkpoint=context.checkpoint("sasrec", config),
    )
    return _with_ranker(context, SASRecRanker(trained.model, neighbours=counted), trained)


def fit_tiger(context: Context, **settings: Any) -> Fitted:
    """TIGER: one padded sample per target, an encoder-decoder of the published size."""
    table = context.run.semantic_ids
    codes = torch.from_numpy(np.array(table.codes))
    return _fit_tokens(
        context, "tiger", lambda: EncoderDecoder(codes, table.codebook_sizes), 20, settings
    )


def fit_decoder_only(context: Context, **settings: Any) -> Fitted:
    """One stream of tokens, all positions at once."""
    table = context.run.semantic_ids
    codes = torch.from_numpy(np.array(table.codes))
    return _fit_tokens(
        context, "decoder-only", lambda: DecoderOnly(codes, table.codebook_sizes), 50, settings
    )


def fit_ours(
    context: Context,
    *,
    beam_width: int | Literal["exact"] | None = None,
    neighbours: bool = True,
    **overrides: Any,
) -> Fitted:
    """The trie-softmax retriever, read by a beam of some width, with or without its neighbours."""
    config = context.config.retriever.model_copy(update=overrides)
    trained = fit_retriever(
        context.run.semantic_ids,
        context.split,
        context.run.features.vectors,
        config,
        seed=context.config.seed,
        checkpoint=context.checkpoint("recgrit", config),
    )
    if not neighbours:
        trained.model.neighbours = None
    width = beam_width or context.config.evaluation.beam_width
    ranker = TrieRanker(trained.model, beam_width=None if width == "exact" else width)
    # A beam finds no more items than its width.
    top_k = TOP_K if width == "exact" else min(TOP_K, width)
    found = _with_ranker(context, ranker, trained, top_k)
    return Fitted(found.recommend, found.facts | {"parts": trained.model.num_parameters()})


def fit_fused(context: Context, num_models: int) -> Fitted:
    """Retrievers of different seeds, each with IDs of its own."""
    rankers, facts = [], {"parameters": 0, "fit_seconds": 0.0}
    for number in range(num_models):
        seed = context.config.seed + FUSED_SEEDS * number
        where = context.config.run.dir.with_name(f"{context.config.run.dir.name}-fused-{seed}")
        values = context.config.model_dump()
        values |= {"seed": seed, "run": values["run"] | {"dir": where}}
        config = ExperimentConfig.model_validate(values)
        run_experiment(config, until="tokenize")
        run = Run(where)
        trained = fit_retriever(
            run.semantic_ids,
            context.split,
            run.features.vectors,
            config.retriever,
            seed=seed,
            checkpoint=replace(context, config=config, run=run).checkpoint(
                "recgrit", config.retriever
            ),
        )
        facts["parameters"] += sum(p.numel() for p in trained.model.parameters())
        facts["fit_seconds"] += sum(epoch.seconds for epoch in trained.history)
        rankers.append(TrieRanker(trained.model, beam_width=config.evaluation.beam_width))
    found = _with_ranker(context, FusedRanker(rankers, depth=context.config.evaluation.beam_width))
    return Fitted(found.recommend, facts)


def _fit_tokens(
    context: Context,
    name: str,
    build: Callable[[], EncoderDecoder | DecoderOnly],
    history_length: int,
    settings: Mapping[str, Any],
) -> Fitted:
    trie = build_trie(context.run.semantic_ids.codes)
    config = TrainingConfig(**settings)
    trained = train_model(
        build,
        lambda model, precision: TokenRanker(model, trie, beam_width=20),
        context.split,
        config,
        history_length=history_length,
        seed=context.config.seed,
        checkpoint=context.checkpoint(name, config),
        max_seconds=context.seconds,
    )
    ranker = TokenRanker(trained.model, trie, beam_width=context.config.evaluation.beam_width)
    return _with_ranker(context, ranker, trained)


def _with_ranker(
    context: Context, ranker: Ranker, trained: Trained[Any] | None = None, top_k: int = TOP_K
) -> Fitted:
    def recommend(name: Split, users: np.ndarray, masked: bool) -> Recommendations:
        return recommend_items(ranker, context.split, name, users, top_k=top_k, masked=masked)

    facts: dict[str, Any] = {}
    if trained is not None:
        facts = {
            "best_epoch": trained.best_epoch,
            "epochs": len(trained.history),
            "parameters": sum(p.numel() for p in trained.model.parameters()),
            "fit_seconds": sum(epoch.seconds for epoch in trained.history),
        }
    return Fitted(recommend, facts)


@dataclass(frozen=True)
class Model:
    """A row of the leaderboard.

    Args:
        fit: Trains it.
        settings: Of the model.
        overrides: Of the stages before it: what is embedded and how it becomes IDs.
        times_ours: Time it may train, relative to recgrit's on the same data; None for as long as
            it improves.
        max_users: Users that are evaluated; None for all.
    """

    fit: Callable[..., Fitted]
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    times_ours: float | None = None
    max_users: int | None = None


SASREC = {"epochs": 30, "patience": 4, "valid_users": 5000}
TIGER = {"batch_targets": 256, "warmup_steps": 500, "valid_users": 1000, "epochs": 200}
DECODER = {"warmup_steps": 200, "valid_users": 1000, "epochs": 200}
OURS = "recgrit"
TEXT_ONLY = ("features.cooccurrence_weight=0",)
# As TIGER is published; its 256 codes a level are for the command to set.
THREE_LEVELS = ("tokenizer.num_levels=3",)
BOARD: dict[str, Model] = {
    "popularity": Model(fit_popularity),
    "item-kNN": Model(fit_item_knn),
    OURS: Model(fit_ours),
    "SASRec": Model(fit_sasrec, SASREC),
    "SASRec with neighbours": Model(fit_sasrec, SASREC | {"neighbours": True}),
    "TIGER, equal time": Model(fit_tiger, TIGER, THREE_LEVELS, times_ours=1, max_users=5000),
    "TIGER, 4 x time": Model(fit_tiger, TIGER, THREE_LEVELS, times_ours=4, max_users=5000),
    "decoder only, equal time": Model(
        fit_decoder_only, DECODER, THREE_LEVELS, times_ours=1, max_users=2000
    ),
    "decoder only, 4 x time": Model(
        fit_decoder_only, DECODER, THREE_LEVELS, times_ours=4, max_users=2000
    ),
    "three fused": Model(fit_fused, {"num_models": 3}),
    "neighbours off": Model(fit_ours, {"neighbours": False}),
    "seen scores off": Model(fit_ours, {"seen_scores": False}),
    "weight averaging off": Model(fit_ours, {"average_decay": 0.0}),
    "trie softmax off": Model(fit_ours, {"trie_softmax": False}),
    "no vectors of single items": Model(fit_ours, {"node_vectors": "shared"}),
    "8,192 node buckets": Model(fit_ours, {"node_buckets": 8192}),
    "no node vectors": Model(fit_ours, {"node_vectors": "none"}),
    "content projected in": Model(fit_ours, {"content": True}),
    "no co-occurrence in the IDs": Model(fit_ours, overrides=TEXT_ONLY),
    "3 levels": Model(fit_ours, overrides=THREE_LEVELS),
    "4 levels": Model(fit_ours, overrides=("tokenizer.num_levels=4",)),
    "64 codes": Model(fit_ours, overrides=("tokenizer.codebook_size=64",)),
    "256 codes": Model(fit_ours, overrides=("tokenizer.codebook_size=256",)),
    "1024 codes": Model(fit_ours, overrides=("tokenizer.codebook_size=1024",)),
    **{
        f"beam {width}": Model(fit_ours, {"beam_width": width}, max_users=2000)
        for width in (10, 20, 50, 100)
    },
    "exact scores": Model(fit_ours, {"beam_width": "exact"}, max_users=2000),
}
# What the final settings were chosen from, by validation.
CANDIDATES: dict[str, Model] = {
    OURS: Model(fit_ours),
    **{
        f"SASRec, dropout {dropout}, dim {dim}": Model(
            fit_sasrec, SASREC | {"dropout": dropout, "model_dim": dim}
        )
        for dropout in (0.3, 0.5)
        for dim in (64, 128, 256)
    },
    "item-kNN, discount .5": Model(fit_item_knn, {"discount": 0.5}),
    "item-kNN, discount .8": Model(fit_item_knn, {"discount": 0.8}),
    "item-kNN, discount 1": Model(fit_item_knn, {"discount": 1.0}),
}
COLD: dict[str, Model] = {
    OURS: Model(fit_ours),
    "neighbours off": Model(fit_ours, {"neighbours": False}),
    "content projected in": Model(fit_ours, {"content": True}),
    "node dropout .3": Model(fit_ours, {"node_dropout": 0.3}),
    "node dropout .3, content": Model(fit_ours, {"content": True, "node_dropout": 0.3}),
    "no co-occurrence in the IDs": Model(fit_ours, overrides=TEXT_ONLY),
}


@dataclass(frozen=True)
class Leaderboard:
    """Where experiments come from and rows go to."""

    config_path: Path
    overrides: tuple[str, ...]
    out: Path
    work: Path

    def table(self, part: str) -> CellTable:
        """The table of a part."""
        return CellTable(self.out / f"{part}.parquet")

    def configure(self, model: Model, seed: int) -> ExperimentConfig:
        """The experiment with a model's changes; IDs are shared by all models that change none."""
        config = load_config(
            ExperimentConfig,
            self.config_path,
            [*self.overrides, *model.overrides, f"seed={seed}", "tracking.backend=none"],
        )
        told = [text for text in self.overrides if not text.startswith("data.path=")]
        name = "-".join([config.data.source, *told, *model.overrides, str(seed)]).replace("/", "-")
        where = {"dir": self.work / name, "cache_dir": self.work / "cache"}
        return ExperimentConfig.model_validate(config.model_dump() | {"run": where})

    def fit(self, model: Model, cell: Cell) -> tuple[Fitted, SequenceSplit]:
        """Train one model, with IDs of its own seed."""
        config = self.configure(model, int(cell["seed"] or 0))
        run_experiment(config, until="tokenize")
        run = Run(config.run.dir)
        context = Context(config, run, run.data.split, self._time(model, str(cell["data"])))
        return model.fit(context, **model.settings), run.data.split

    def _time(self, model: Model, data: str) -> float | None:
        if model.times_ours is None:
            return None
        rows = self.table("board").rows()
        ours = rows.filter(data=data, model=OURS) if not rows.is_empty() else rows
        if ours.is_empty():
            raise ConfigError(
                f"How long {OURS} takes on {data} is not known yet: run its row first."
            )
        return model.times_ours * float(ours["fit_seconds"].to_numpy().mean())


def measure(
    fitted: Fitted, split: SequenceSplit, names: tuple[Split, ...], max_users: int | None = None
) -> dict[str, Any]:
    """Metrics at 10 and ranks, the history masked and not."""
    row: dict[str, Any] = dict(fitted.facts)
    for name in names:
        users = split.target_users(name)
        if max_users is not None and max_users < len(users):
            users = np.sort(np.random.default_rng(0).choice(users, max_users, replace=False))
        row["num_users"] = len(users)
        for masked in (False, True):
            found = fitted.recommend(name, users, masked)
            ranks = ranks_of_targets(found.items, split.targets(name, users))
            label = f"{name}_masked" if masked else name
            row[f"{label}_recall_at_10"] = float(recall_at_k(ranks, 10).mean())
            row[f"{label}_ndcg_at_10"] = float(ndcg_at_k(ranks, 10).mean())
            row[f"{label}_ranks"] = pl.Series(ranks, dtype=pl.Int16)
    return row


def choose(board: Leaderboard, models: list[str], seeds: list[int]) -> None:
    """Validation metrics of candidates, on one seed of their own."""

    def run(cell: Cell) -> dict[str, Any]:
        fitted, split = board.fit(CANDIDATES[str(cell["model"])], cell)
        row = measure(fitted, split, ("valid",))
        return {key: value for key, value in row.items() if not key.endswith("ranks")}

    cells = [{"model": name, "seed": CHOICE_SEED} for name in CANDIDATES if chosen(name, models)]
    board.table("choice").fill([_with_data(board, cell) for cell in cells], run)


def compare(board: Leaderboard, models: list[str], seeds: list[int]) -> None:
    """Validation and test metrics of all models."""

    def run(cell: Cell) -> dict[str, Any]:
        model = BOARD[str(cell["model"])]
        fitted, split = board.fit(model, cell)
        return measure(fitted, split, ("valid", "test"), model.max_users)

    cells = [
        {"model": name, "seed": seed} for seed in seeds for name in BOARD if chosen(name, models)
    ]
    board.table("board").fill([_with_data(board, cell) for cell in cells], run)


def start_cold(board: Leaderboard, models: list[str], seeds: list[int]) -> None:
    """Test targets among items that training never saw, in the list of the whole catalogue."""

    def run(cell: Cell) -> dict[str, Any]:
        model = COLD[str(cell["model"])]
        held_out = (f"data.cold_item_share={COLD_SHARE}", f"data.cold_item_seed={cell['seed']}")
        model = replace(model, overrides=(*model.overrides, *held_out))
        fitted, split = board.fit(model, cell)
        cold = split.train_item_counts() == 0
        users = split.target_users("test")
        targets = split.targets("test", users)
        found = fitted.recommend("test", users, True).items[:, :10]
        ranks = ranks_of_targets(found, targets)
        recall = recall_at_k(ranks, 10)
        return fitted.facts | {
            "cold_targets": int(cold[targets].sum()),
            "cold_recall_at_10": float(recall[cold[targets]].mean()),
            "warm_recall_at_10": float(recall[~cold[targets]].mean()),
            "cold_share_of_lists": float(cold[found[found >= 0]].mean()),
            "cold_share_of_targets": float(cold[targets].mean()),
        }

    cells = [
        {"model": name, "seed": seed} for seed in seeds for name in COLD if chosen(name, models)
    ]
    board.table("cold").fill([_with_data(board, cell) for cell in cells], run)


def chosen(name: str, models: list[str]) -> bool:
    """Whether a row is asked for, by its name or what stands there before a comma."""
    return not models or any(f"{name},".startswith(f"{model},") for model in models)


def _with_data(board: Leaderboard, cell: dict[str, Any]) -> Cell:
    return {"data": board.configure(BOARD[OURS], 0).data.source, **cell}


PARTS = {"choice": choose, "board": compare, "cold": start_cold}


def main(
    config: Annotated[Path, typer.Argument(help="The experiment whose data are used.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    parts: Annotated[str, typer.Option(help="Parts to run.")] = ",".join(PARTS),
    models: Annotated[str, typer.Option(help="Rows to run, parted by semicolons.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds that are reported.")] = "0",
    out: Annotated[Path, typer.Option(help="Where tables go.")] = Path("runs/leaderboard"),
    work: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs/leaderboard"),
) -> None:
    """Run the rows that are not finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise typer.BadParameter(f"Unknown part(s) {unknown}: choose from {', '.join(PARTS)}.")
    board = Leaderboard(config, tuple(overrides or ()), out, work)
    for name in names:
        PARTS[name](
            board,
            [model.strip() for model in models.split(";") if model],
            [int(seed) for seed in seeds.split(",")],
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
