"""One experiment: the settings of all stages, as one YAML file holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from recgrit.config import Config, load_config, validate
from recgrit.data.config import DataConfig
from recgrit.disk import resolve_links, write_atomic
from recgrit.embedding.config import EmbeddingConfig, FeatureConfig
from recgrit.engines.config import EngineConfig
from recgrit.errors import ArtifactError
from recgrit.evaluation.config import EvaluationConfig
from recgrit.models.config import (
    DecoderConfig,
    ItemKNNConfig,
    ItemVectorConfig,
    ModelConfig,
    SASRecConfig,
    TigerConfig,
    TransitionsConfig,
)
from recgrit.quantization.config import TokenizerConfig
from recgrit.retrieval.config import RetrieverConfig
from recgrit.tracking.config import TrackingConfig

CONFIG_NAME = "config.yaml"
# Of all interactions, what folds may keep from the training of the first of them.
MAX_HELD_OUT = 0.9
# The section of each model's settings; popularity has none.
SECTIONS = {
    "trie": "retriever",
    "sasrec": "sasrec",
    "tiger": "tiger",
    "decoder": "decoder",
    "transitions": "transitions",
    "item_knn": "item_knn",
}


class RunConfig(Config):
    """Where an experiment's artifacts go.

    Args:
        dir: The run folder; if it is not set, ``runs/`` and the data source, and the model if that
            is not ``trie``.
        cache_dir: Where embeddings and learned item vectors are kept across runs; None for a folder
            beside the run.
    """

    dir: Path = Path("runs/experiment")
    cache_dir: Path | None = None

    @property
    def cache(self) -> Path:
        """The folder of what is kept across runs."""
        return self.cache_dir if self.cache_dir is not None else self.dir.parent / ".cache"


class RecommendationConfig(Config):
    """What is recommended to every user at the end of a run.

    Args:
        top_k: Items per user.
        exclude_seen: Keep out what the user already has.
        allowed_items: A text file of item ids, one a line: nothing else is recommended.
        blocked_items: Likewise; what is never recommended.
        left_out_users: Recommend to users with too few interactions for training too: by what they
            had, or popular items. Turn it off where a log has many more of these than others.
    """

    top_k: int = Field(10, ge=1, le=1_000_000)
    exclude_seen: bool = True
    allowed_items: Path | None = None
    blocked_items: Path | None = None
    left_out_users: bool = True


class ExperimentConfig(Config):
    """Settings of a whole run, one section per stage and one per model.

    Attributes:
        seed: Of all that is drawn at random; another gives another run of the same settings.
    """

    seed: int = Field(0, ge=0, lt=2**31)
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    features: FeatureConfig = FeatureConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    item_vectors: ItemVectorConfig = ItemVectorConfig()
    model: ModelConfig = ModelConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    sasrec: SASRecConfig = SASRecConfig()
    tiger: TigerConfig = TigerConfig()
    decoder: DecoderConfig = DecoderConfig()
    transitions: TransitionsConfig = TransitionsConfig()
    item_knn: ItemKNNConfig = ItemKNNConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    recommendation: RecommendationConfig = RecommendationConfig()
    tracking: TrackingConfig = TrackingConfig()
    engine: EngineConfig = EngineConfig()

    @property
    def baselines(self) -> tuple[str, ...]:
        """Kinds of the models measured beside the run's own."""
        return tuple(kind for kind in self.evaluation.baselines if kind != self.model.kind)

    @property
    def experiment_name(self) -> str:
        """What the tracker and the registered model call the experiment."""
        return self.tracking.experiment or self.run.dir.absolute().name

    def settings_of(self, kind: str) -> Config:
        """The settings of a model; a baseline from outside has its defaults.

        Raises:
            ConfigError: No model has this name.
        """
        if kind in SECTIONS:
            section: Config = getattr(self, SECTIONS[kind])
            return section
        from recgrit.models.registry import find_model

        values = self.model.settings if kind == self.model.kind else {}
        return find_model(kind).settings_class.model_validate(values)

    def with_recorded(self, stage: str, recorded: Mapping[str, Any]) -> ExperimentConfig:
        """The settings with those that a stage was built with; what it did not record stays.

        Settings of stages that have not run yet need not fit them.

        Args:
            stage: Its name.
            recorded: The settings in its manifest.

        Raises:
            ConfigError: They are no settings of such a stage.
        """
        sections: dict[str, Any] = {k: v for k, v in recorded.items() if k in RECORDED}
        if stage == "prepare":
            # Whether there were files of items and users is recorded, and not where they lie.
            paths = ("items_path", "users_path")
            table = {k: v for k, v in recorded["table"].items() if k not in paths}
            sections = {"data": {**recorded, "table": table}}
        elif stage == "embed":
            sections["features"] = self.features.with_recorded(sections["features"])
        elif stage == "train":
            kind, settings = recorded["model"], recorded["settings"]
            sections["model"] = {"kind": kind, "settings": {}}
            if kind in SECTIONS:
                sections[SECTIONS[kind]] = settings
            elif settings:
                sections["model"] = {"kind": kind, "settings": settings}
        found: dict[str, Any] = {"seed": recorded["seed"]} if "seed" in recorded else {}
        for name, values in sections.items():
            section = getattr(self, name)
            found[name] = validate(type(section), _put(section, values), f"the manifest of {stage}")
        return self.model_copy(update=found)

    def with_absolute_paths(self) -> ExperimentConfig:
        """The settings as a process with another working folder needs them."""
        return ExperimentConfig.model_validate(_absolute(self.model_dump()))

    def to_values(self, *, only_given: bool = False) -> dict[str, Any]:
        """The settings as YAML holds them, with absolute paths.

        Args:
            only_given: Leave out what nobody set.
        """
        values = _absolute(self.model_dump(exclude_unset=only_given))
        found: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return found

    def to_yaml(self) -> str:
        """The settings as a file of them has them, paths absolute."""
        text: str = yaml.safe_dump(self.to_values(), sort_keys=False)
        return text

    def save(self) -> None:
        """Keep the settings in the run folder; a file that already holds them stays untouched.

        Paths are absolute there: the run can be repeated from any folder.

        Raises:
            ArtifactError: The file cannot be written.
        """
        path, text = self.run.dir / CONFIG_NAME, self.to_yaml()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        try:
            write_atomic(path, text)
        except OSError as error:
            raise ArtifactError(f"Cannot write {path}: {error.strerror}.") from None

    @classmethod
    def load(cls, directory: Path) -> ExperimentConfig:
        """The settings in a run folder, the folder being where it is now."""
        # Quoted: a folder called 2024-01-01 is no date.
        return load_config(cls, directory / CONFIG_NAME, [f"run.dir={json.dumps(str(directory))}"])

    @model_validator(mode="before")
    @classmethod
    def _name_run(cls, values: Any) -> Any:
        """A run folder for each data source and model: two never share one unasked."""
        if not isinstance(values, Mapping):
            return values
        run = values.get("run", {})
        if not isinstance(run, Mapping) or "dir" in run:
            return values
        name = str(_value_of(values, "data", "source") or _DEFAULT_SOURCE).lower()
        kind = str(_value_of(values, "model", "kind") or _DEFAULT_KIND)
        if kind != _DEFAULT_KIND:
            name += f"-{kind.rpartition('.')[2].lower()}"
        return {**values, "run": {**run, "dir": Path("runs") / name.replace("/", "-")}}

    @model_validator(mode="after")
    def _check_model(self) -> ExperimentConfig:
        if self.model.settings and self.model.kind in (*SECTIONS, "popularity"):
            section = SECTIONS.get(self.model.kind)
            where = f"the section {section}" if section else "no settings"
            raise ValueError(
                f"model.settings is for models of your own; {self.model.kind} has {where}"
            )
        for kind in {self.model.kind, *self.evaluation.baselines} - {*SECTIONS, "popularity"}:
            try:
                self.settings_of(kind)
            except ValidationError as error:
                faults = "; ".join(
                    f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
                    for fault in error.errors()
                )
                raise ValueError(f"model.settings do not fit {kind}: {faults}") from None
        return self

    @model_validator(mode="after")
    def _check_codebooks(self) -> ExperimentConfig:
        # Raises where levels and sizes disagree: now, not after minutes of encoding.
        _ = self.tokenizer.codebook_sizes
        return self

    @model_validator(mode="after")
    def _check_buckets(self) -> ExperimentConfig:
        buckets, largest = self.retriever.node_buckets, max(self.tokenizer.codebook_sizes)
        if buckets and self.tokenizer.semantic_ids_path is None and buckets < largest:
            raise ValueError(
                f"retriever.node_buckets is {buckets}, but a codebook has {largest} codes, so that "
                f"children of one node would share an embedding: set it to at least {largest}"
            )
        return self

    @model_validator(mode="after")
    def _check_source(self) -> ExperimentConfig:
        source = self.retriever.init_from
        if source is None:
            return self
        if self.model.kind != _DEFAULT_KIND:
            raise ValueError(
                f"retriever.init_from is for model.kind={_DEFAULT_KIND}, and model.kind is "
                f"{self.model.kind}: set one of them"
            )
        if self.tokenizer.semantic_ids_path is not None:
            raise ValueError(
                "retriever.init_from takes the IDs of what it trains on from, and "
                "tokenizer.semantic_ids_path others: set one of them"
            )
        if resolve_links(source) == resolve_links(self.run.dir):
            raise ValueError(
                f"retriever.init_from is {source}, the run itself: name another run.dir"
            )
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> ExperimentConfig:
        folds, data = self.evaluation.folds, self.data
        if folds == 1:
            return self
        if data.split != "temporal" or data.valid_from is not None:
            raise ValueError(
                "evaluation.folds are windows of time, which data.valid_share and data.test_share "
                "choose: set data.split=temporal and no data.valid_from, or evaluation.folds=1"
            )
        if self.engine.kind != "local":
            raise ValueError("evaluation.folds goes with engine=local: folds run one by one")
        held_out = folds * data.test_share + data.valid_share
        if held_out > MAX_HELD_OUT:
            raise ValueError(
                f"{folds} folds of data.test_share={data.test_share:g} and "
                f"data.valid_share={data.valid_share:g} leave the first one "
                f"{max(0.0, 1 - held_out):.0%} of all interactions to train on, and it needs "
                f"{1 - MAX_HELD_OUT:.0%}: lower the shares or evaluation.folds"
            )
        return self

    @model_validator(mode="after")
    def _check_beam(self) -> ExperimentConfig:
        longest = max(*self.evaluation.ks, self.recommendation.top_k)
        if self.evaluation.beam_width < longest:
            raise ValueError(
                f"evaluation.beam_width is {self.evaluation.beam_width}, but lists of {longest} "
                "items are asked for: a beam finds no more items than its width"
            )
        return self


# Sections that stages record under the names that they have here.
RECORDED = {"embedding", "features", "tokenizer", "item_vectors", "evaluation", "recommendation"}


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and JSON values.

    Example:
        >>> list(flat_settings({"seed": 0, "evaluation": {"ks": [5, 10]}}))
        [('seed', '0'), ('evaluation.ks', '[5, 10]')]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def _put(settings: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a mapping, with other values in their place."""
    found = {name: getattr(settings, name) for name in type(settings).model_fields}
    for name, value in values.items():
        found[name] = _put_one(found.get(name), value)
    return found


def _put_one(before: Any, value: Any) -> Any:
    """A recorded value in the place of a setting: sections keep what was not recorded of them."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(before, Config):
        return _put(before, value)
    named = before if isinstance(before, Mapping) else {}
    return {name: _put_one(named.get(name), entry) for name, entry in value.items()}


_DEFAULT_SOURCE = DataConfig.model_fields["source"].default
_DEFAULT_KIND = ModelConfig.model_fields["kind"].default


def _value_of(values: Mapping[str, Any], section: str, name: str) -> Any:
    """A setting before it is validated: a section may be a mapping, settings, or one word."""
    found = values.get(section)
    if isinstance(found, Mapping):
        return found.get(name)
    return getattr(found, name, found)


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(entry) for key, entry in value.items()}
    return value.absolute() if isinstance(value, Path) else value
