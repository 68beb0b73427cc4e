"""One experiment: the settings of all stages, as one YAML file holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from recgrit.config import Config, load_config
from recgrit.data.config import DataConfig
from recgrit.disk import write_atomic
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
    """

    top_k: int = Field(10, ge=1, le=1_000_000)
    exclude_seen: bool = True
    allowed_items: Path | None = None
    blocked_items: Path | None = None


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

    def with_absolute_paths(self) -> ExperimentConfig:
        """The settings as a process with another working folder needs them."""
        return ExperimentConfig.model_validate(_absolute(self.model_dump()))

    def save(self) -> None:
        """Keep the settings in the run folder; a file that already holds them stays untouched.

        Paths are absolute there: the run can be repeated from any folder.

        Raises:
            ArtifactError: The file cannot be written.
        """
        values = json.loads(json.dumps(_absolute(self.model_dump()), default=str))
        path, text = self.run.dir / CONFIG_NAME, yaml.safe_dump(values, sort_keys=False)
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
    def _check_beam(self) -> ExperimentConfig:
        longest = max(*self.evaluation.ks, self.recommendation.top_k)
        if self.evaluation.beam_width < longest:
            raise ValueError(
                f"evaluation.beam_width is {self.evaluation.beam_width}, but lists of {longest} "
                "items are asked for: a beam finds no more items than its width"
            )
        return self


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
