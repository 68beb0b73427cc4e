"""A finished run, opened: its tables, its model, and recommendations with titles.

This is what notebooks and services use. Parts are loaded when first asked for, and each is checked
against the artifacts it was built from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import Manifest, check_parent, read_manifest
from recgrit.config import load_config
from recgrit.data.prepare import PreparedData
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.features import FeatureTransform
from recgrit.errors import ArtifactError, DataError, RecgritError
from recgrit.evaluation.report import EvaluationReport
from recgrit.experiment import ExperimentConfig
from recgrit.quantization.config import TokenizerConfig
from recgrit.retrieval.config import RetrieverConfig
from recgrit.semantic_ids.table import SemanticIdTable

if TYPE_CHECKING:
    from recgrit.quantization.autoencoder import QuantizedAutoencoder
    from recgrit.retrieval.model import TrieRetriever
    from recgrit.retrieval.trie_ranker import TrieRanker

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "retriever.safetensors"
TOKENIZER_NAME = "tokenizer.safetensors"
TRANSFORM_NAME = "feature_transform.safetensors"
# Holds what an interrupted training needs to go on.
CHECKPOINTS_NAME = ".training"
# Holds what is done of a stage that is done in shards.
SHARDS_NAME = ".shards"
# There while a tracked run has not come to its end.
TRACKING_NAME = ".tracking.json"

# Stage -> (its folder in the run, the stages it is built from).
LAYOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "prepare": ("data", ()),
    "embed": ("embeddings", ("prepare",)),
    "tokenize": ("semantic_ids", ("prepare", "embed")),
    "train": ("retriever", ("prepare", "embed", "tokenize")),
    "evaluate": ("evaluation", ("prepare", "embed", "tokenize", "train")),
    "recommend": ("recommendations", ("prepare", "embed", "tokenize", "train")),
}


def stage_directory(run_directory: Path, stage: str) -> Path:
    """Where a stage of this run has its artifact."""
    return run_directory / LAYOUT[stage][0]


def read_tokenizer(path: Path, config: TokenizerConfig, feature_dim: int) -> QuantizedAutoencoder:
    """A fitted tokenizer from its weights, in eval mode."""
    from safetensors.torch import load_file

    from recgrit.quantization.fit import build_tokenizer

    model = build_tokenizer(feature_dim, config)
    model.load_state_dict(load_file(path))
    return model.eval()


class Run:
    """A run folder, read-only.

    Args:
        directory: The folder that ``run.dir`` named.
        device: Where the retriever runs; "auto" is a GPU if there is one.

    Raises:
        ArtifactError: The folder holds no run.

    Example:
        ``Run("runs/movielens-100k").recommend(["42"])`` is a table of items with titles.
    """

    def __init__(self, directory: Path | str, *, device: str = "auto") -> None:
        self.directory = Path(directory)
        self.device = device
        if not stage_directory(self.directory, "prepare").is_dir():
            raise ArtifactError(
                f"No run at {self.directory}: expected a folder that 'recgrit run' wrote, with "
                f"{', '.join(folder for folder, _ in LAYOUT.values())} in it."
            )

    @cached_property
    def config(self) -> ExperimentConfig:
        """The settings of the run, its folder being where it is now."""
        # Quoted: a folder called 2024-01-01 is no date.
        overrides = [f"run.dir={json.dumps(str(self.directory))}"]
        return load_config(ExperimentConfig, self.directory / CONFIG_NAME, overrides)

    def manifest(self, stage: str) -> Manifest:
        """What a stage recorded of itself, checked against its parents.

        Raises:
            ArtifactError: The stage has not run, or was built from other parents than are here.
        """
        directory = stage_directory(self.directory, stage)
        manifest = read_manifest(directory)
        for parent in LAYOUT[stage][1]:
            parent_directory = stage_directory(self.directory, parent)
            check_parent(directory, manifest, parent_directory, read_manifest(parent_directory))
        return manifest

    @cached_property
    def data(self) -> PreparedData:
        """Interactions, items, split and funnel."""
        self.manifest("prepare")
        with self._reading("prepare") as directory:
            return PreparedData.load(directory)

    @cached_property
    def features(self) -> Embeddings:
        """The item features that were tokenized."""
        self.manifest("embed")
        with self._reading("embed") as directory:
            return Embeddings.load(directory, "features")

    @cached_property
    def feature_transform(self) -> FeatureTransform:
        """How the features were made, to be repeated on items that come later.

        Raises:
            ArtifactError: The embeddings were made before it was kept.
        """
        self.manifest("embed")
        with self._reading("embed") as directory:
            if not (directory / TRANSFORM_NAME).is_file():
                raise ArtifactError(
                    f"{directory} lacks {TRANSFORM_NAME}: an older recgrit wrote it. Make the run "
                    f"again with 'recgrit run {self.directory} --force'."
                )
            return FeatureTransform.load(directory / TRANSFORM_NAME)

    @cached_property
    def semantic_ids(self) -> SemanticIdTable:
        """The item-ID table."""
        self.manifest("tokenize")
        with self._reading("tokenize") as directory:
            return SemanticIdTable.load(directory)

    @cached_property
    def tokenizer(self) -> QuantizedAutoencoder:
        """The fitted tokenizer, in eval mode: codes for features of the same kind.

        Raises:
            ArtifactError: The IDs of this run were published, not fitted.
        """
        manifest = self.manifest("tokenize")
        if "published" in manifest.summary:
            raise ArtifactError(
                f"{self.directory} has the IDs of {manifest.summary['published']}: there is no "
                "tokenizer to give codes to other items. Unset tokenizer.semantic_ids_path to fit "
                "one."
            )
        config = TokenizerConfig.model_validate(manifest.config["tokenizer"])
        with self._reading("tokenize") as directory:
            return read_tokenizer(directory / TOKENIZER_NAME, config, self.features.embedding_dim)

    @cached_property
    def retriever(self) -> TrieRetriever:
        """The trained retriever, in eval mode."""
        from safetensors.torch import load_file

        from recgrit.retrieval.fit import build_retriever
        from recgrit.retrieval.training import choose_device

        manifest = self.manifest("train")
        config = RetrieverConfig.model_validate(manifest.config["retriever"])
        model = build_retriever(self.semantic_ids, self.data.split, self.features.vectors, config)
        with self._reading("train") as directory:
            model.load_state_dict(load_file(directory / WEIGHTS_NAME))
        return model.to(choose_device(self.device)).eval()

    @cached_property
    def reports(self) -> dict[str, EvaluationReport]:
        """Evaluation reports by name, such as ``test`` or ``popularity_test_masked``."""
        self.manifest("evaluate")
        with self._reading("evaluate") as directory:
            return {
                path.name: EvaluationReport.load(path)
                for path in sorted(directory.iterdir())
                if path.is_dir()
            }

    def ranker(
        self,
        *,
        beam_width: int | None = None,
        allowed_items: Collection[str] | None = None,
        blocked_items: Collection[str] = (),
    ) -> TrieRanker:
        """The trained retriever, ready to rank.

        Args:
            beam_width: Prefixes kept at each level; None scores every item.
            allowed_items: External ids of the only items that may be listed; None for all.
            blocked_items: External ids of items that are never listed.

        Raises:
            DataError: No item is left.
        """
        import torch

        from recgrit.retrieval.listing import find_allowed
        from recgrit.retrieval.trie_ranker import TrieRanker

        allowed = None
        if allowed_items is not None or blocked_items:
            allowed = torch.from_numpy(
                find_allowed(self.semantic_ids, allowed_items, blocked_items)
            )
        return TrieRanker(self.retriever, beam_width=beam_width, allowed=allowed)

    def recommend(
        self,
        user_ids: Sequence[str] | str | None = None,
        *,
        top_k: int = 10,
        beam_width: int | None = None,
        exclude_seen: bool = True,
        allowed_items: Collection[str] | None = None,
        blocked_items: Collection[str] = (),
    ) -> pl.DataFrame:
        """What these users are likely to take next, after all they have taken.

        Filters act inside the search: ``top_k`` items come back wherever so many are left.

        Args:
            user_ids: One external user id or several; None for all users.
            top_k: Items per user.
            beam_width: Prefixes kept at each level, at least ``top_k``; None for as many as the
                run was evaluated with.
            exclude_seen: Keep out what a user already has.
            allowed_items: External ids of the only items that may be listed; None for all.
            blocked_items: External ids of items that are never listed.

        Returns:
            Columns user_id, rank, item_id, title, semantic_id, score (log P of the item, and what
            neighbours that boost scores add).

        Raises:
            DataError: A user is unknown, or no item is left.
        """
        shards = self.iterate_recommendations(
            user_ids,
            top_k=top_k,
            beam_width=beam_width,
            exclude_seen=exclude_seen,
            allowed_items=allowed_items,
            blocked_items=blocked_items,
        )
        return pl.concat(shards)

    def iterate_recommendations(
        self,
        user_ids: Sequence[str] | str | None = None,
        *,
        top_k: int = 10,
        beam_width: int | None = None,
        exclude_seen: bool = True,
        allowed_items: Collection[str] | None = None,
        blocked_items: Collection[str] = (),
    ) -> Iterator[pl.DataFrame]:
        """`recommend`, some users at a time: memory does not grow with their number."""
        from recgrit.retrieval.listing import name_lists
        from recgrit.retrieval.recommend import recommend_shards

        if isinstance(user_ids, str):  # A sequence too, but of letters.
            user_ids = [user_ids]
        users = self._user_indices(user_ids)
        ranker = self._search(top_k, beam_width, allowed_items, blocked_items)
        for found in recommend_shards(
            ranker, self.data.split, users, top_k=top_k, masked=exclude_seen
        ):
            yield name_lists(self.semantic_ids, found.to_polars(), self.data.interactions.user_ids)

    def recommend_after(
        self,
        histories: Mapping[str, Sequence[str]],
        *,
        top_k: int = 10,
        beam_width: int | None = None,
        exclude_seen: bool = True,
        allowed_items: Collection[str] | None = None,
        blocked_items: Collection[str] = (),
    ) -> pl.DataFrame:
        """What is likely to follow histories that need not be in the data.

        Items that the catalogue does not hold are passed over, and their number is told; so are
        names whose histories hold no known item, which get no list. Of a long history the last
        items are read.

        Args:
            histories: External item ids, oldest first, by a name for each list.
            top_k: Items per list.
            beam_width: As for `recommend`.
            exclude_seen: Keep out what the history holds.
            allowed_items: As for `recommend`.
            blocked_items: As for `recommend`.

        Returns:
            As `recommend`, with the name of each history as user_id.
        """
        from recgrit.retrieval.listing import recommend_histories

        return recommend_histories(
            self._search(top_k, beam_width, allowed_items, blocked_items),
            self.semantic_ids,
            histories,
            top_k=top_k,
            exclude_seen=exclude_seen,
        )

    def _search(
        self,
        top_k: int,
        beam_width: int | None,
        allowed_items: Collection[str] | None,
        blocked_items: Collection[str],
    ) -> TrieRanker:
        """A ranker wide enough for lists of this length."""
        if top_k < 1:
            raise DataError(f"top_k must be at least 1, got {top_k}.")
        self.manifest("train")  # Its absence is told before that of what it needs.
        if beam_width is None:
            beam_width = self.evaluated_beam_width()
        return self.ranker(
            beam_width=max(beam_width, top_k),
            allowed_items=allowed_items,
            blocked_items=blocked_items,
        )

    def explain(
        self, user_id: str, item_id: str, *, num_siblings: int = 3, num_titles: int = 3
    ) -> pl.DataFrame:
        """How an item's score after all that a user has taken comes about, level by level.

        Args:
            user_id: External user id.
            item_id: External item id, listed or not; filters play no part.
            num_siblings: Other codes shown at each level, those that score most.
            num_titles: Titles that stand for a code: the most taken of its items.

        Returns:
            Rows of a level by rank. ``level``; ``code``; ``chosen``, whether it is the item's own;
            ``rank`` by score among the ``num_codes`` that could follow; ``probability`` given the
            codes before, so that those of the chosen rows multiply to P of the item;
            ``neighbour_share``, how much of P of the prefix so far comes from items taken near
            those of the history; ``boost``, what these add to the log of P in the prefix's score:
            the item's score is log P and the last chosen row's boost; ``num_items`` below it;
            ``titles``.

        Raises:
            DataError: The user or the item is unknown.
        """
        from recgrit.retrieval.batching import last_items
        from recgrit.retrieval.explaining import name_choices, walk_to_item

        split, item = self.data.split, self.semantic_ids.item_idx(item_id)
        users = self._user_indices([user_id])
        ranker = self.ranker()
        history = last_items(
            split.items, split.offsets[:-1][users], split.offsets[1:][users], ranker.history_length
        )
        choices = walk_to_item(ranker, history.to(ranker.device), item)
        return name_choices(
            ranker,
            self.semantic_ids,
            choices,
            split.train_item_counts(),
            num_siblings=num_siblings,
            num_titles=num_titles,
        )

    def history(self, user_id: str) -> pl.DataFrame:
        """What a user has taken, in time order: item_id, title, semantic_id."""
        user = int(self._user_indices([user_id])[0])
        taken = self.data.split.full_sequence(user)
        items = self.semantic_ids.to_polars().select("item_id", "title", "semantic_id")
        return items.select(pl.all().gather(taken.tolist()))

    def evaluated_beam_width(self) -> int:
        """Prefixes kept at each level of the search when the run was evaluated."""
        directory = stage_directory(self.directory, "evaluate")
        if not directory.is_dir():
            return self.config.evaluation.beam_width
        return int(read_manifest(directory).config["evaluation"]["beam_width"])

    @contextmanager
    def _reading(self, stage: str) -> Iterator[Path]:
        """The folder of a stage; what cannot be read in it is told as such.

        Raises:
            ArtifactError: A file is damaged.
        """
        directory = stage_directory(self.directory, stage)
        try:
            yield directory
        except RecgritError:
            raise
        # Every format has its own exceptions, and safetensors derives its from Exception.
        except Exception as error:
            raise ArtifactError(
                f"{directory} cannot be read, its files are damaged or do not fit together: "
                f"{error}. Delete the folder and run again with 'recgrit run {self.directory}'."
            ) from error

    def _user_indices(self, user_ids: Sequence[str] | None) -> npt.NDArray[np.int64]:
        known = self.data.interactions.user_ids
        if user_ids is None:
            return np.arange(len(known))
        index = {user_id: user_idx for user_idx, user_id in enumerate(known)}
        unknown = [user_id for user_id in user_ids if user_id not in index]
        if unknown:
            raise DataError(
                f"Unknown user(s) {', '.join(map(repr, unknown[:3]))}: the run has {len(known)} "
                f"users, such as {', '.join(map(repr, known.head(3).to_list()))}. Users with too "
                "few interactions were filtered out."
            )
        return np.array([index[user_id] for user_id in user_ids], dtype=np.int64)
