"""A finished run, opened: its tables, its models, and recommendations with titles.

This is what notebooks and services use. Parts are loaded when first asked for, and each is checked
against the artifacts it was built from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import check_parent, load_artifact
from recgrit.config import validate
from recgrit.data.ids import IdList, list_ids
from recgrit.data.prepare import PreparedData
from recgrit.data.splits import Split
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.features import FeatureTransform
from recgrit.errors import ArtifactError, ConfigError, DataError, ReplacedError
from recgrit.evaluation.report import EvaluationReport, ReportKey
from recgrit.experiment import ExperimentConfig
from recgrit.layout import (
    FOLDERS,
    TOKENIZER_NAME,
    TRANSFORM_NAME,
    baseline_stage,
    is_stage,
    stage_directory,
)
from recgrit.manifests import Manifest, read_manifest
from recgrit.quantization.config import TokenizerConfig
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.summaries import Summarized

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.models.model import CatalogueInputs, Model
    from recgrit.quantization.autoencoder import Tokenizer
    from recgrit.ranking import Ranker
    from recgrit.recommender import Recommender

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_tokenizer(path: Path, config: TokenizerConfig, feature_dim: int) -> Tokenizer:
    """A fitted tokenizer from its weights, in eval mode."""
    from safetensors.torch import load_file

    from recgrit.quantization.fit import build_learned_tokenizer, build_tokenizer

    state = load_file(path)
    model: Tokenizer
    if config.objective == "reconstruction":
        model = build_tokenizer(feature_dim, config)
    else:
        model = build_learned_tokenizer(feature_dim, len(state["center"]), config)
    model.load_state_dict(state)
    return model.eval()


class Run(Summarized):
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
        self._fingerprints: dict[str, str] = {}
        if not stage_directory(self.directory, "prepare").is_dir():
            raise ArtifactError(
                f"No run at {self.directory}: expected a folder that 'recgrit run' wrote, with "
                f"{', '.join(FOLDERS.values())} in it."
            )

    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """The run in a few lines, of what its stages recorded."""
        facts: dict[str, str] = {}
        try:
            told = {
                stage: read_manifest(stage_directory(self.directory, stage)).summary
                for stage in ("prepare", "evaluate")
                if self.has(stage)
            }
            facts["model"] = self.model_kind
        except ArtifactError as error:
            return f"Run {self.directory}", {"damaged": str(error)}
        data = told["prepare"]
        facts["data"] = (
            f"{data['source']}: {data['num_interactions']:,} interactions of "
            f"{data['num_users']:,} users with {data['num_items']:,} items"
        )
        measured = told.get("evaluate", {}).get("metrics", {}).get(facts["model"], {})
        for lists in ("test", "test_masked"):
            if lists in measured:
                facts[lists.replace("_", " ")] = ", ".join(
                    f"{name.replace('_at_', '@')} {mean:.4f}"
                    for name, mean in measured[lists].items()
                )
        return f"Run {self.directory}", facts

    @cached_property
    def config(self) -> ExperimentConfig:
        """The settings of the run, its folder being where it is now."""
        return ExperimentConfig.load(self.directory)

    @property
    def seed(self) -> int:
        """The seed that the run's model was fitted with; of the settings before that."""
        if self.has("train"):
            return int(read_manifest(stage_directory(self.directory, "train")).config["seed"])
        return self.config.seed

    def stages(self) -> list[str]:
        """Names of the stages of this run in their order, whether they have run yet or not.

        Stages that a trained model does not need are left out, and so are baselines that were not
        measured.
        """
        names = list(FOLDERS)
        folders = sorted((self.directory / "baselines").glob("[!.]*"))
        baselines = [baseline_stage(path.name) for path in folders]
        place = names.index("evaluate")
        names[place:place] = baselines
        if not self.has("train"):
            return names
        needed = {"prepare", "train", "evaluate", "recommend"}
        if not self.has("evaluate"):
            needed.update(baselines)
        for name in reversed(names):
            if name in needed and self.has(name):
                needed.update(read_manifest(stage_directory(self.directory, name)).parents)
        return [name for name in names if name in needed]

    def has(self, stage: str) -> bool:
        """Whether a stage has run."""
        return stage_directory(self.directory, stage).is_dir()

    def manifest(self, stage: str) -> Manifest:
        """What a stage recorded of itself, checked against its parents.

        Raises:
            ArtifactError: The stage has not run, or was built from other parents than are here.
            ReplacedError: The run was made anew since a part of it was read here.
        """
        directory = stage_directory(self.directory, stage)
        if not self.has(stage):
            # An older recgrit called folders otherwise: that it wrote them is said first.
            read_manifest(stage_directory(self.directory, "prepare"))
        manifest = read_manifest(directory)
        for parent in manifest.parents:
            if not is_stage(parent):
                raise ArtifactError(
                    f"{directory} says that it was built from {parent!r}, which is no stage: it is "
                    f"damaged. Make it again with 'recgrit run {self.directory}'."
                )
            parent_directory = stage_directory(self.directory, parent)
            check_parent(directory, manifest, parent_directory, read_manifest(parent_directory))
        for name, fingerprint in {**manifest.parents, stage: manifest.fingerprint}.items():
            if self._fingerprints.setdefault(name, fingerprint) != fingerprint:
                raise ReplacedError(
                    f"The stage {name} of {self.directory} was made anew since it was read: open "
                    "the run again."
                )
        return manifest

    def read(self, stage: str, load: Callable[[Path], T]) -> T:
        """What is read from the folder of a stage, whose files are compared with their checksums.

        Args:
            stage: Its name.
            load: Reads what it needs from the folder.

        Raises:
            ArtifactError: A file is damaged, or see `manifest`.
        """
        expected = self.manifest(stage)
        return load_artifact(stage_directory(self.directory, stage), load, expected=expected)

    @cached_property
    def data(self) -> PreparedData:
        """Interactions, items, split and funnel."""
        return self.read("prepare", PreparedData.load)

    @cached_property
    def features(self) -> Embeddings:
        """The item features that were tokenized."""
        return self.read("embed", lambda directory: Embeddings.load(directory, "features"))

    @cached_property
    def words(self) -> csr_array | None:
        """The words of the items' texts; None where the items came as vectors."""
        from recgrit.embedding.words import load_words

        return self.read("embed", load_words)

    @cached_property
    def feature_transform(self) -> FeatureTransform:
        """How the features were made, to be repeated on items that come later."""
        return self.read("embed", lambda path: FeatureTransform.load(path / TRANSFORM_NAME))

    @cached_property
    def semantic_ids(self) -> SemanticIdTable:
        """The item-ID table.

        Raises:
            ArtifactError: The run has none.
        """
        if not self.has("tokenize") and "tokenize" not in self.stages():
            raise ArtifactError(
                f"{self.directory} has the model {self.model_kind}, which needs no semantic IDs. "
                f"'recgrit tokenize {self.directory}' makes them."
            )
        return self.read("tokenize", SemanticIdTable.load)

    @cached_property
    def tokenizer(self) -> Tokenizer:
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
        config = validate(TokenizerConfig, manifest.config["tokenizer"], "the tokenizer")
        width = self.features.embedding_dim
        return self.read(
            "tokenize", lambda path: read_tokenizer(path / TOKENIZER_NAME, config, width)
        )

    @property
    def model_kind(self) -> str:
        """Kind of the run's own model, such as ``trie``."""
        if self.has("train"):
            return str(self.manifest("train").config["model"])
        return self.config.model.kind

    def catalogue_inputs(self, needs: Collection[str]) -> CatalogueInputs:
        """What a model may use of the items.

        Args:
            needs: Stages whose artifacts it uses beside the prepared data.
        """
        from recgrit.models.model import CatalogueInputs

        num_items = self.data.split.num_items
        return CatalogueInputs(
            trained=self.data.split.train_item_counts() > 0,
            semantic_ids=self.semantic_ids if "tokenize" in needs else None,
            features=self.features.vectors if "embed" in needs else None,
            words=self.words if "embed" in needs else None,
            listed=np.ones(num_items, dtype=bool),
            num_known=num_items,
        )

    def model(self, kind: str | None = None) -> Model:
        """A fitted model of the run.

        Args:
            kind: The run's own model or one of its baselines; None for the run's own.

        Raises:
            ArtifactError: The model is not there, or was fitted to other data than the run has.
            ConfigError: The run has no model of this kind.
        """
        kind = self.model_kind if kind is None else kind
        if kind not in self._models:
            self._models[kind] = self._load_model(kind)
        return self._models[kind]

    @cached_property
    def _models(self) -> dict[str, Model]:
        return {}

    def _load_model(self, kind: str) -> Model:
        from recgrit.models.registry import find_model

        stage = "train" if kind == self.model_kind else baseline_stage(kind)
        if stage != "train" and not stage_directory(self.directory, stage).is_dir():
            raise ConfigError(
                f"{self.directory} has no model {kind}. Add it with 'recgrit run {self.directory} "
                f"evaluation.baselines=[{kind}]'."
            )
        manifest, model = self.manifest(stage), find_model(kind)
        inputs = self.catalogue_inputs(model.needs)
        settings = validate(model.settings_class, manifest.config["settings"], f"the stage {stage}")
        loaded = self.read(stage, lambda path: model.load(path, inputs, settings))
        return loaded.to_device(self.device)

    @cached_property
    def reports(self) -> dict[ReportKey, EvaluationReport]:
        """Evaluation reports of the run's own model and of its baselines."""
        return self.read(
            "evaluate",
            lambda directory: {
                ReportKey.of_folder(path.parent): EvaluationReport.load(path.parent)
                for path in sorted(directory.glob("*/*/evaluation.json"))
            },
        )

    def report(
        self, split: Split = "test", *, masked: bool = False, model: str | None = None
    ) -> EvaluationReport:
        """One evaluation report.

        Args:
            split: ``valid`` or ``test``.
            masked: Whether seen items were filtered out of the lists.
            model: Kind of the model; None for the run's own.

        Raises:
            ArtifactError: The run has no such report.
        """
        key = ReportKey(self.model_kind if model is None else model, split, masked)
        if key not in self.reports:
            raise ArtifactError(
                f"{self.directory} has no report {key.folder}; there are "
                f"{', '.join(sorted(found.folder for found in self.reports))}."
            )
        return self.reports[key]

    def recommender(
        self, model: str | None = None, *, beam_width: int | None = None
    ) -> Recommender:
        """What recommends items of this run.

        Args:
            model: The run's own model or one of its baselines; None for the run's own.
            beam_width: Prefixes kept at each level, for models that search; None for as many as the
                run was evaluated with.
        """
        from recgrit.recommender import Recommender

        # Where it is missing, that is reported before what it needs.
        fitted = self.model(model)
        return Recommender(
            fitted,
            self.semantic_ids if "tokenize" in fitted.needs else self.data.items,
            beam_width=self.evaluated_beam_width() if beam_width is None else beam_width,
        )

    @cached_property
    def _recommender(self) -> Recommender:
        return self.recommender()

    def ranker(
        self,
        *,
        beam_width: int | Literal["exact"] | None = None,
        allowed_items: IdList | None = None,
        blocked_items: IdList = (),
    ) -> Ranker:
        """The run's own model, ready to rank; see `Recommender.ranker`."""
        return self._recommender.ranker(
            beam_width=beam_width, allowed_items=allowed_items, blocked_items=blocked_items
        )

    def recommend(self, user_ids: IdList | None = None, **options: Any) -> pl.DataFrame:
        """What these users are likely to interact with next; see `iterate_recommendations`."""
        return pl.concat(self.iterate_recommendations(user_ids, **options))

    def iterate_recommendations(
        self,
        user_ids: IdList | None = None,
        *,
        top_k: int = 10,
        beam_width: int | None = None,
        exclude_seen: bool = True,
        allowed_items: IdList | None = None,
        blocked_items: IdList = (),
    ) -> Iterator[pl.DataFrame]:
        """Lists after all that users interacted with, some users at a time.

        Filters act inside the search: ``top_k`` items come back wherever so many are left. Memory
        does not grow with the number of users.

        Args:
            user_ids: One external user id or several; None for all users.
            top_k: Items per user.
            beam_width: Prefixes kept at each level, at least twice ``top_k``; None for as many as
                the run was evaluated with.
            exclude_seen: Keep out what a user already has.
            allowed_items: External ids of the only items that may be listed; None for all.
            blocked_items: External ids of items that are never listed.

        Returns:
            Tables with the columns user_id, rank, item_id, title, semantic_id where the model has
            semantic IDs, and score.

        Raises:
            DataError: A user is unknown, or no item is left.
        """
        users = self._user_indices(user_ids)
        ranker = self.ranker(
            beam_width=beam_width, allowed_items=allowed_items, blocked_items=blocked_items
        )
        yield from self._recommender.list_users(
            self.data.split,
            self.data.interactions.user_ids,
            users,
            ranker=ranker,
            top_k=top_k,
            exclude_seen=exclude_seen,
        )

    def recommend_after(self, histories: Mapping[str, IdList], **options: Any) -> pl.DataFrame:
        """What is likely to follow histories that need not be in the data.

        See `Recommender.recommend_after`, which has the options.
        """
        return self._recommender.recommend_after(histories, **options)

    def explain(self, user_id: str, item_id: str, **options: Any) -> pl.DataFrame:
        """How an item's score after all that a user interacted with comes about.

        See `Recommender.explain`, which has the options and the columns.

        Raises:
            DataError: The user or the item is unknown.
        """
        user = int(self._user_indices([user_id])[0])
        return self._recommender.explain(self.data.split, user, item_id, **options)

    def history(self, user_id: str) -> pl.DataFrame:
        """What a user interacted with, in time order: item_id, title, and semantic_id if any."""
        user = int(self._user_indices([user_id])[0])
        seen, names = self.data.split.full_sequence(user), self._recommender.items
        columns = [c for c in ("item_id", "title", "semantic_id") if c in names.to_polars().columns]
        return names.to_polars().select(pl.col(columns).gather(seen.tolist()))

    def evaluated_beam_width(self) -> int:
        """Prefixes kept at each level of the search when the run was evaluated."""
        directory = stage_directory(self.directory, "evaluate")
        if not directory.is_dir():
            return self.config.evaluation.beam_width
        try:
            return int(read_manifest(directory).config["evaluation"]["beam_width"])
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"{directory} does not say with which beam the run was evaluated: it is damaged. "
                f"Make it again with 'recgrit evaluate {self.directory}'."
            ) from None

    def _user_indices(self, user_ids: IdList | None) -> npt.NDArray[np.int64]:
        known = self.data.interactions.user_ids
        if user_ids is None:
            return np.arange(len(known))
        user_ids = list_ids(user_ids, "user_ids")
        index = {user_id: user_idx for user_idx, user_id in enumerate(known)}
        unknown = [user_id for user_id in user_ids if user_id not in index]
        if unknown:
            raise DataError(
                f"Unknown user(s) {', '.join(map(repr, unknown[:3]))}: the run has {len(known)} "
                f"users, such as {', '.join(map(repr, known.head(3).to_list()))}. Users with too "
                "few interactions were filtered out."
            )
        return np.array([index[user_id] for user_id in user_ids], dtype=np.int64)
