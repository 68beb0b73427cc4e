"""Access to a finished run: its tables, its models, and recommendations with titles.

Notebooks and services use this module. Parts of a run are loaded when they are first used, and each
part is checked against the artifacts that it was built from.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import check_parent, load_artifact
from recgrit.config import validate
from recgrit.data.ids import IdList, list_ids
from recgrit.data.prepare import PreparedData
from recgrit.data.splits import SequenceSplit, Split
from recgrit.data.user_histories import UserHistories
from recgrit.embedding.embeddings import Embeddings
from recgrit.embedding.transforms import FeatureTransform
from recgrit.errors import ArtifactError, ConfigError, DataError, ReplacedError
from recgrit.evaluation.config import EvaluationConfig
from recgrit.evaluation.repeats import Repeats
from recgrit.evaluation.report import EvaluationReport, ReportKey
from recgrit.experiment import ExperimentConfig, flat_settings
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
from recgrit.records import require_record
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.summaries import Summarized

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.data.attributes import Attributes
    from recgrit.models.model import CatalogueInputs, Model
    from recgrit.quantization.autoencoder import Tokenizer
    from recgrit.ranking import Ranker
    from recgrit.recommender import Fallback, Recommender, Source
    from recgrit.similar import SimilarItems, Way

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_tokenizer(path: Path, config: TokenizerConfig, feature_dim: int) -> Tokenizer:
    """Return a fitted tokenizer in eval mode, read from its weights.

    Args:
        path: File of the weights.
        config: Settings that the tokenizer was fitted with.
        feature_dim: Number of dimensions of the item features.

    Raises:
        DataError: A weight is not finite.
    """
    from safetensors.torch import load_file

    from recgrit.models.network import require_finite
    from recgrit.quantization.fit import build_learned_tokenizer, build_tokenizer

    state = load_file(path)
    require_finite(state)
    model: Tokenizer
    if config.objective == "reconstruction":
        model = build_tokenizer(feature_dim, config)
    else:
        model = build_learned_tokenizer(feature_dim, len(state["center"]), config)
    model.load_state_dict(state)
    return model.eval()


class FoundUsers(NamedTuple):
    """Requested users of a run, grouped by where they are in its data.

    Args:
        trained: user_idx of the users that the model was trained with, int64.
        left_out: Indices of users among those whom the filters left out of training, int64.
        unknown: External ids that are not in the log.
    """

    trained: npt.NDArray[np.int64]
    left_out: npt.NDArray[np.int64]
    unknown: list[str]


class Run(Summarized):
    """A finished run, opened read-only.

    Args:
        directory: Run folder, which ``run.dir`` named.
        device: Device on which models rank. "auto" uses a GPU if there is one.

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
        """Return a title and facts about the run, from what its stages recorded."""
        facts: dict[str, str] = {}
        try:
            told = {
                stage: self.record(stage).summary
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
    def plan(self) -> ExperimentConfig:
        """Return the settings in the run folder, which the next 'recgrit run' uses.

        Some of them may have been changed after the artifacts were built.
        """
        return ExperimentConfig.load(self.directory)

    @cached_property
    def config(self) -> ExperimentConfig:
        """Return the settings that the artifacts were built with, as the stages recorded them.

        Stages that have not run have the settings of `plan`.
        """
        config = self.plan
        # The stage "train" comes last, so that the seed is the model's if there is a model.
        for stage in sorted(filter(self.has, FOLDERS), key=lambda name: name == "train"):
            with contextlib.suppress(ArtifactError):  # Reading a damaged stage raises the error.
                config = config.with_recorded(stage, self.record(stage).config)
        return config

    def waiting_settings(self) -> dict[str, tuple[str | None, str | None]]:
        """Return the settings that were changed after the artifacts were built.

        Returns:
            Values as JSON text by dotted name: first the value that the artifacts were built with,
            then the planned one. A value is None if the setting does not exist there.
        """
        made, planned = (
            dict(flat_settings(config.model_dump(mode="json")))
            for config in (self.config, self.plan)
        )
        names = dict.fromkeys([*made, *planned])
        pairs = {name: (made.get(name), planned.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def seed(self) -> int:
        """Return the seed that the run's model was fitted with, or the planned seed before that."""
        return self.config.seed

    def record(self, stage: str) -> Manifest:
        """Return the manifest of a stage without comparing it with its parents.

        Raises:
            ArtifactError: The stage has not run, or its manifest is damaged.
        """
        directory = stage_directory(self.directory, stage)
        manifest = read_manifest(directory)
        require_record(manifest, stage, directory)
        return manifest

    def stages(self) -> list[str]:
        """Return the names of the run's stages in order.

        Stages that have not run yet are included. Stages that the run's kind of model does not
        have, such as ``tokenize`` for SASRec, are left out. So are baselines that were not
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
                needed.update(self.record(name).parents)
        return [name for name in names if name in needed]

    def has(self, stage: str) -> bool:
        """Return whether a stage has run."""
        return stage_directory(self.directory, stage).is_dir()

    def manifest(self, stage: str) -> Manifest:
        """Return the manifest of a stage after checking it against the stage's parents.

        Raises:
            ArtifactError: The stage has not run, or was built from other parents than the run now
                has.
            ReplacedError: A stage was built again after this object read a part of it.
        """
        directory = stage_directory(self.directory, stage)
        if not self.has(stage):
            # An older recgrit used other folder names. Reading the first stage reports its version
            # before a folder is reported as missing.
            self.record("prepare")
        manifest = self.record(stage)
        for parent in manifest.parents:
            if not is_stage(parent):
                raise ArtifactError(
                    f"{directory} says that it was built from {parent!r}, which is not a stage: "
                    f"it is damaged. Make it again with 'recgrit run {self.directory}'."
                )
            parent_directory = stage_directory(self.directory, parent)
            check_parent(directory, manifest, parent_directory, self.record(parent))
        for name, fingerprint in {**manifest.parents, stage: manifest.fingerprint}.items():
            if self._fingerprints.setdefault(name, fingerprint) != fingerprint:
                raise ReplacedError(
                    f"The stage {name} of {self.directory} was made again after it was read: open "
                    "the run again."
                )
        return manifest

    def read(self, stage: str, load: Callable[[Path], T]) -> T:
        """Return what ``load`` reads from a stage's folder, after verifying the files' checksums.

        Args:
            stage: Name of the stage.
            load: Function that reads what it needs from the folder.

        Raises:
            ArtifactError: A file is damaged, or `manifest` refuses the stage.
        """
        expected = self.manifest(stage)
        return load_artifact(stage_directory(self.directory, stage), load, expected=expected)

    @cached_property
    def data(self) -> PreparedData:
        """Return the prepared data: interactions, items, split, and what each filter step kept."""
        return self.read("prepare", PreparedData.load)

    @cached_property
    def features(self) -> Embeddings:
        """Return the item features that the tokenizer quantized."""
        return self.read("embed", lambda directory: Embeddings.load(directory, "features"))

    @cached_property
    def words(self) -> csr_array | None:
        """Return the TF-IDF weights of the words in the items' texts, or None without texts."""
        from recgrit.embedding.words import load_words

        return self.read("embed", load_words)

    @cached_property
    def feature_transform(self) -> FeatureTransform:
        """Return the fitted transform of item features, to apply it to items added later."""
        return self.read("embed", lambda path: FeatureTransform.load(path / TRANSFORM_NAME))

    @cached_property
    def semantic_ids(self) -> SemanticIdTable:
        """Return the table of semantic IDs.

        Raises:
            ArtifactError: The run has no semantic IDs.
        """
        if not self.has("tokenize") and "tokenize" not in self.stages():
            raise ArtifactError(
                f"{self.directory} has the model {self.model_kind}, which needs no semantic IDs. "
                f"Run 'recgrit tokenize {self.directory}' to make them."
            )
        return self.read("tokenize", SemanticIdTable.load)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the fitted tokenizer in eval mode, which assigns codes to features.

        Raises:
            ArtifactError: The run uses published IDs, which come without a tokenizer.
        """
        manifest = self.manifest("tokenize")
        if "published" in manifest.summary:
            raise ArtifactError(
                f"{self.directory} has the published IDs of {manifest.summary['published']}, so "
                "there is no tokenizer to give codes to other items. Unset "
                "tokenizer.semantic_ids_path to fit one."
            )
        config = validate(TokenizerConfig, manifest.config["tokenizer"], "the tokenizer")
        width = self.features.embedding_dim
        return self.read(
            "tokenize", lambda path: read_tokenizer(path / TOKENIZER_NAME, config, width)
        )

    @property
    def model_kind(self) -> str:
        """Return the kind of the run's own model, such as ``trie``."""
        if self.has("train"):
            return str(self.manifest("train").config["model"])
        return self.config.model.kind

    def catalogue_inputs(self, needs: Collection[str], settings: object = None) -> CatalogueInputs:
        """Return what a model may use of the items.

        Args:
            needs: Names of the stages whose artifacts the model uses beside the prepared data.
            settings: Settings of the model. Fields ``item_attributes`` and ``user_attributes`` name
                the columns of items and users that the model learns from.

        Raises:
            ConfigError: A named column does not exist.
        """
        from recgrit.data.attributes import Attributes
        from recgrit.models.model import CatalogueInputs

        num_items = self.data.split.num_items
        trained = self.data.split.train_item_counts() > 0
        names = getattr(settings, "item_attributes", ())
        users = self.user_attributes(getattr(settings, "user_attributes", ()))
        return CatalogueInputs(
            trained=trained,
            semantic_ids=self.semantic_ids if "tokenize" in needs else None,
            features=self.features.vectors if "embed" in needs else None,
            words=self.words if "embed" in needs else None,
            listed=np.ones(num_items, dtype=bool),
            num_known=num_items,
            attributes=Attributes.fit(self.data.items.frame, names, trained),
            user_attributes=users,
        )

    def user_attributes(self, names: Sequence[str]) -> Attributes | None:
        """Return attributes from columns of the users' table, and values for an unknown user.

        Args:
            names: Names of the columns. With no names, the result is None.

        Raises:
            ConfigError: A column does not exist, or the run has no users' table.
        """
        from recgrit.data.attributes import Attributes, require_columns

        if not names:
            return None
        split = self.data.split
        trained = np.zeros(split.num_users, dtype=bool)
        trained[split.train_pairs()[0]] = True
        frame = require_columns(self.data.users, names, "retriever.user_attributes")
        found = Attributes.fit(frame, names, trained)
        return None if found is None else found.with_stranger()

    def model(self, kind: str | None = None) -> Model:
        """Return a fitted model of the run.

        Args:
            kind: Kind of the run's own model or of one of its baselines. None returns the run's own
                model.

        Raises:
            ArtifactError: The model is missing, or was fitted to other data than the run now has.
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
        settings = validate(model.settings_class, manifest.config["settings"], f"the stage {stage}")
        inputs = self.catalogue_inputs(model.needs, settings)
        loaded = self.read(stage, lambda path: model.load(path, inputs, settings))
        return loaded.to_device(self.device)

    @cached_property
    def reports(self) -> dict[ReportKey, EvaluationReport]:
        """Return the evaluation reports of the run's own model and of its baselines."""
        split = self.data.split

        def load(directory: Path) -> dict[ReportKey, EvaluationReport]:
            found = {}
            for path in sorted(directory.glob("*/*/evaluation.json")):
                report = EvaluationReport.load(path.parent)
                key = ReportKey.of_folder(path.parent)
                if (key.split, key.masked) != (report.protocol["split"], report.protocol["masked"]):
                    raise DataError(f"{path.parent} does not hold the report that its name says.")
                report.require_targets_of(split)
                found[key] = report
            return found

        return self.read("evaluate", load)

    def report(
        self, split: Split = "test", *, masked: bool = False, model: str | None = None
    ) -> EvaluationReport:
        """Return one evaluation report.

        Args:
            split: Targets that were ranked, ``valid`` or ``test``.
            masked: Whether seen items were filtered out of the lists.
            model: Kind of the model. None is the run's own model.

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

    @cached_property
    def repeats(self) -> Repeats:
        """Return which test targets are already in the user's history."""
        return Repeats.of(self.report("test"), self.data.split, self.config.data)

    @cached_property
    def new_items(self) -> dict[str, EvaluationReport]:
        """Return the report on test targets that are not yet in the user's history, by model.

        Seen items are filtered out of the lists. The result is empty if few targets are in the
        history (`Repeats.are_many`), because the reports on all targets then say almost the same.
        It is also empty if all targets are in the history.
        """
        if not self.repeats.are_many:
            return {}
        found = {
            key.model: self.repeats.of_new_items(report)
            for key, report in self.reports.items()
            if key.split == "test" and key.masked
        }
        return {model: report for model, report in found.items() if report is not None}

    def recommender(
        self, model: str | None = None, *, beam_width: int | None = None
    ) -> Recommender:
        """Return a `Recommender` for the items of this run.

        Args:
            model: Kind of the run's own model or of one of its baselines. None uses the run's own
                model.
            beam_width: Number of prefixes kept at each level of the beam search. None uses the
                width of the run's evaluation.
        """
        from recgrit.recommender import Recommender

        # The model is loaded first, so that a missing model is reported before missing inputs.
        fitted = self.model(model)
        return Recommender(
            fitted,
            self.semantic_ids if "tokenize" in fitted.needs else self.data.items,
            beam_width=self.evaluated_beam_width() if beam_width is None else beam_width,
            counts=self.data.split.train_target_counts(),
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
        """Return the run's own model, ready to rank.

        Args:
            beam_width: Number of prefixes kept at each level. "exact" scores every item. None uses
                the width of the run's evaluation.
            allowed_items: External ids of the only items that may be listed. None allows all items.
            blocked_items: External ids of items that are never listed.

        Raises:
            DataError: The filters leave no item.
        """
        return self._recommender.ranker(
            beam_width=beam_width, allowed_items=allowed_items, blocked_items=blocked_items
        )

    def recommend(self, user_ids: IdList | None = None, **options: Any) -> pl.DataFrame:
        """Return lists of items that users are likely to interact with next.

        Args:
            user_ids: External ids of the users. None makes lists for all users of the log.
            **options: Options of `iterate_recommendations`.
        """
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
        fallback: Fallback | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Yield lists after the users' whole histories, some users at a time.

        Users whom the filters left out of training also get lists, after the users of training.
        Their lists are based on their interactions with items of the catalogue, or on popularity if
        they have none. The column ``source`` says which. Filters act inside the beam search, so a
        list has ``top_k`` items if that many items are allowed. Memory does not grow with the
        number of users.

        Args:
            user_ids: External id of one user, or ids of several. None makes lists for all users of
                the log.
            top_k: Number of items per user.
            beam_width: Number of prefixes kept at each level of the beam search. A width below
                twice ``top_k`` is raised to that. None uses the width of the run's evaluation.
            exclude_seen: Filter seen items out of the lists.
            allowed_items: External ids of the only items that may be listed. None allows all items.
            blocked_items: External ids of items that are never listed.
            fallback: List for users who are not in the log. "popular" returns the most popular
                items, and None refuses such users.

        Returns:
            Tables with the columns user_id, rank, item_id, title, semantic_id if the model has
            semantic IDs, score, and source. The source is "model" for users of training, "history"
            for users who were left out of training and have known items, and "popular" for all
            others. The score of a popular item is its number of training interactions.

        Raises:
            ConfigError: The fallback is unknown.
            DataError: A user is unknown and there is no fallback, or the filters leave no item.
        """
        from recgrit.recommender import check_fallback

        check_fallback(fallback)
        found = self._find_users(user_ids)
        if found.unknown and fallback is None:
            raise self._refuse_unknown(found.unknown)
        ranker = self.ranker(
            beam_width=beam_width, allowed_items=allowed_items, blocked_items=blocked_items
        )
        recommender, popular = self._recommender, None
        if len(found.left_out) or found.unknown:
            popular = recommender.popular(allowed_items=allowed_items, blocked_items=blocked_items)
        data = self.data
        strangers = UserHistories.without_history(found.unknown, data.split.num_items)
        groups: tuple[tuple[Source, SequenceSplit, pl.Series, npt.NDArray[np.int64] | None], ...]
        groups = (
            ("model", data.split, data.interactions.user_ids, found.trained),
            ("history", data.left_out.split, data.left_out.user_ids, found.left_out),
            ("history", strangers.split, strangers.user_ids, None),
        )
        for source, split, names, users in groups:
            yield from recommender.list_users(
                split,
                names,
                users,
                ranker=ranker,
                top_k=top_k,
                exclude_seen=exclude_seen,
                source=source,
                popular=popular,
            )

    def recommend_after(self, histories: Mapping[str, IdList], **options: Any) -> pl.DataFrame:
        """Return lists after histories that need not be in the data.

        Args:
            histories: External item ids, oldest first, by a name for each list.
            **options: Options of `Recommender.recommend_after`.
        """
        return self._recommender.recommend_after(histories, **options)

    def similar_items(
        self, item_id: str, top_k: int = 10, *, by: Way = "embedding"
    ) -> pl.DataFrame:
        """Return the items that are most similar to one item.

        Args:
            item_id: External id of the item.
            top_k: Largest number of items to return. The list is shorter if fewer items are
                similar.
            by: Measure of similarity: ``embedding``, ``neighbours``, ``semantic_id`` or
                ``retriever``, which `recgrit.similar` explains.

        Returns:
            A table with the columns rank, item_id, title, semantic_id if the run has semantic IDs,
            and score.

        Raises:
            ConfigError: The run lacks what this measure needs. The message names the possible ones.
            DataError: The item is unknown, or this measure knows nothing about it.
        """
        return self.similar(by).of(item_id, top_k=top_k)

    def similar(self, by: Way = "embedding") -> SimilarItems:
        """Return an object that finds similar items by one measure, also for all items at once.

        Args:
            by: Measure of similarity, as in `similar_items`.
        """
        if by not in self._similar:
            from recgrit.similar import SimilarItems, Ways

            has_ids = self.has("tokenize")
            ways = Ways(
                f"The run {self.directory}",
                model=self.model if self.has("train") else None,
                features=(lambda: self.features.vectors) if self.has("embed") else None,
                ids=self._ids_and_tokenizer if has_ids else None,
            )
            names = self.semantic_ids if has_ids else self.data.items
            self._similar[by] = SimilarItems(names, ways.make(by))
        return self._similar[by]

    def _ids_and_tokenizer(self) -> tuple[SemanticIdTable, Tokenizer | None]:
        is_published = "published" in self.manifest("tokenize").summary
        return self.semantic_ids, None if is_published else self.tokenizer

    @cached_property
    def _similar(self) -> dict[Way, SimilarItems]:
        return {}

    def explain(self, user_id: str, item_id: str, **options: Any) -> pl.DataFrame:
        """Explain the score of an item after all items that a user interacted with.

        Args:
            user_id: External id of the user.
            item_id: External id of the item.
            **options: Options of `Recommender.explain`, which also describes the columns of the
                result.

        Raises:
            DataError: The user or the item is unknown, or the user was left out of training.
        """
        found = self._find_users([user_id])
        if len(found.left_out):
            raise DataError(
                f"User {user_id!r} has too few interactions and was left out of training: only "
                "lists of training users can be explained."
            )
        if found.unknown:
            raise self._refuse_unknown(found.unknown)
        user = int(found.trained[0])
        return self._recommender.explain(self.data.split, user, item_id, **options)

    def history(self, user_id: str) -> pl.DataFrame:
        """Return the items that a user interacted with, in time order.

        For a user who was left out of training, only items of the catalogue are returned.

        Returns:
            A table with the columns item_id, title, and semantic_id if the run has semantic IDs.

        Raises:
            DataError: The user is unknown.
        """
        found = self._find_users([user_id])
        if found.unknown:
            raise self._refuse_unknown(found.unknown)
        if len(found.trained):
            seen = self.data.split.full_sequence(int(found.trained[0]))
        else:
            seen = self.data.left_out.split.full_sequence(int(found.left_out[0]))
        names = self._recommender.items
        columns = [c for c in ("item_id", "title", "semantic_id") if c in names.to_polars().columns]
        return names.to_polars().select(pl.col(columns).gather(seen.tolist()))

    def evaluated_beam_width(self) -> int:
        """Return the beam width of the run's evaluation, or of the settings if there is none."""
        directory = stage_directory(self.directory, "evaluate")
        if not directory.is_dir():
            return self.config.evaluation.beam_width
        recorded = self.record("evaluate").config["evaluation"]
        return validate(EvaluationConfig, recorded, f"the manifest of {directory}").beam_width

    def _find_users(self, user_ids: IdList | None) -> FoundUsers:
        """Return the indices of users in the run's data. None finds all users of the log."""
        trained, left_out = self.data.interactions.user_ids, self.data.left_out.user_ids
        if user_ids is None:
            return FoundUsers(np.arange(len(trained)), np.arange(len(left_out)), [])
        places: tuple[list[int], list[int]] = ([], [])
        unknown: list[str] = []
        for user_id in list_ids(user_ids, "user_ids"):
            for of_group, found in zip(self._user_places, places, strict=True):
                if user_id in of_group:
                    found.append(of_group[user_id])
                    break
            else:
                unknown.append(user_id)
        own, others = (np.array(found, dtype=np.int64) for found in places)
        return FoundUsers(own, others, unknown)

    @cached_property
    def _user_places(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the index of each user by id, for users of training and for those left out."""
        trained, left_out = self.data.interactions.user_ids, self.data.left_out.user_ids
        return (
            {user_id: place for place, user_id in enumerate(trained)},
            {user_id: place for place, user_id in enumerate(left_out)},
        )

    def _refuse_unknown(self, unknown: list[str]) -> DataError:
        known = self.data.interactions.user_ids
        return DataError(
            f"Unknown user(s) {', '.join(map(repr, unknown[:3]))}: the model was trained with "
            f"{len(known)} users, such as {', '.join(map(repr, known.head(3).to_list()))}, and the "
            f"log has {len(self.data.left_out.user_ids)} with too few interactions. For popular "
            "items for unknown users, set fallback='popular' or --fallback popular."
        )
