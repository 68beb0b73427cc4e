"""The models of the leaderboard: how each is trained, and how it recommends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recgrit.artifacts import digest_json
from recgrit.baselines.item_knn import ItemKNN
from recgrit.baselines.popularity import recommend_popular
from recgrit.baselines.sasrec import SASRecRanker, build_sasrec
from recgrit.baselines.token_models import DecoderOnly, EncoderDecoder, TokenRanker
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit, Split
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
