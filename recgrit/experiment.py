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
# Largest share of all interactions that may be held out from the training of the first fold.
MAX_HELD_OUT = 0.9
# Name of the settings section of each model kind. The model popularity has no settings.
SECTIONS = {
    "trie": "retriever",
    "sasrec": "sasrec",
    "tiger": "tiger",
    "decoder": "decoder",
    "transitions": "transitions",
    "item_knn": "item_knn",
}


class RunConfig(Config):
    """Folders of a run and of its cache.

    Args:
        dir: Run folder, in which all stages store their results. By default it is ``runs/``
            followed by the data source, and by the model if that is not ``trie``, such as
            ``runs/movielens-100k-sasrec``.
        cache_dir: Folder that keeps embeddings and learned item vectors, so that other runs can use
            them again. None uses the folder ``.cache`` beside the run folder.
    """

    dir: Path = Path("runs/experiment")
    cache_dir: Path | None = None

    @property
    def cache(self) -> Path:
        """Return the cache folder that is in effect, ``cache_dir`` or its default."""
        return self.cache_dir if self.cache_dir is not None else self.dir.parent / ".cache"


class RecommendationConfig(Config):
    """Lists that the last stage of a run writes for every user.

    Args:
        top_k: Number of items in each user's list. The settings are refused if it is larger than
            ``evaluation.beam_width``.
        exclude_seen: Filter seen items out of the lists: a user gets only items that the user has
            not interacted with. Set it to false where people come back to items, such as groceries
            or music.
        allowed_items: Text file with one item id per line. Only these items are recommended. None
            allows all items.
        blocked_items: Text file with one item id per line. These items are never recommended. None
            blocks no item.
        left_out_users: Also recommend to users who have too few interactions for training. Their
            lists come from their known interactions, or are popular items if there are none. Set it
            to false if the log has many more such users than others.
    """

    top_k: int = Field(10, ge=1, le=1_000_000)
    exclude_seen: bool = True
    allowed_items: Path | None = None
    blocked_items: Path | None = None
    left_out_users: bool = True


class ExperimentConfig(Config):
    """Settings of a whole run, with one section per stage and one per model.

    Attributes:
        seed: Seed of all random draws. Run the same settings with several seeds to see how much the
            results vary by chance.
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
        """Return the kinds of the models that are measured beside the run's own model."""
        return tuple(kind for kind in self.evaluation.baselines if kind != self.model.kind)

    @property
    def experiment_name(self) -> str:
        """Return the name of the experiment in the tracker, and of the registered model."""
        return self.tracking.experiment or self.run.dir.absolute().name

    def settings_of(self, kind: str) -> Config:
        """Return the settings of a model.

        A baseline that is a class of the user's own gets the default settings of its class.

        Args:
            kind: Kind of the model, such as ``trie``, or the dotted path of a class.

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
        """Return a copy with the settings that a finished stage recorded in its manifest.

        Settings that the stage did not record keep their value. The result is not checked for
        contradictions, because the settings of stages that have not run yet may not fit the
        recorded ones.

        Args:
            stage: Name of the stage.
            recorded: Settings in the stage's manifest.

        Raises:
            ConfigError: The recorded values are not valid settings of this stage.
        """
        sections: dict[str, Any] = {k: v for k, v in recorded.items() if k in RECORDED}
        if stage == "prepare":
            # The manifest records whether there were files of items and users, but not their paths.
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
        """Return a copy with absolute paths, for processes with another working folder."""
        return ExperimentConfig.model_validate(_absolute(self.model_dump()))

    def to_values(self, *, only_given: bool = False) -> dict[str, Any]:
        """Return the settings as values that YAML and JSON can hold, with absolute paths.

        Args:
            only_given: Leave out settings that were not set explicitly.
        """
        values = _absolute(self.model_dump(exclude_unset=only_given))
        found: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return found

    def to_yaml(self) -> str:
        """Return the settings as the text of a YAML file, with absolute paths."""
        text: str = yaml.safe_dump(self.to_values(), sort_keys=False)
        return text

    def save(self) -> None:
        """Write the settings into the run folder, unless the file already has the same content.

        Paths are written as absolute paths, so the run can be repeated from any working folder.

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
        """Read the settings in a run folder, with ``run.dir`` set to the folder's present path.

        Args:
            directory: The run folder.
        """
        # The path is quoted, so that a folder called 12 is not read as a number.
        return load_config(cls, directory / CONFIG_NAME, [f"run.dir={json.dumps(str(directory))}"])

    @model_validator(mode="before")
    @classmethod
    def _name_run(cls, values: Any) -> Any:
        """Name the run folder after the data source and the model, so that two never share one."""
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
            where = f"its settings in the section {section}" if section else "no settings"
            raise ValueError(
                f"model.settings works only with a custom model; {self.model.kind} has {where}"
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
        # The property raises an error if the number of levels and the codebook sizes disagree. It
        # is read here so that the error comes before minutes of encoding.
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
                f"retriever.init_from works only with model.kind={_DEFAULT_KIND}, but model.kind "
                f"is {self.model.kind}: change one of them"
            )
        if self.tokenizer.semantic_ids_path is not None:
            raise ValueError(
                "retriever.init_from keeps the IDs of the model that it starts from, but "
                "tokenizer.semantic_ids_path names other IDs: set only one of them"
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
                "evaluation.folds needs a split by time with data.valid_share and data.test_share: "
                "set data.split=temporal and unset data.valid_from, or set evaluation.folds=1"
            )
        if self.engine.kind != "local":
            raise ValueError("evaluation.folds works only with engine=local: folds run one by one")
        held_out = folds * data.test_share + data.valid_share
        if held_out > MAX_HELD_OUT:
            raise ValueError(
                f"{folds} folds of data.test_share={data.test_share:g} and "
                f"data.valid_share={data.valid_share:g} leave the first one "
                f"{max(0.0, 1 - held_out):.0%} of all interactions to train on, but it needs "
                f"{1 - MAX_HELD_OUT:.0%}: lower the shares or evaluation.folds"
            )
        return self

    @model_validator(mode="after")
    def _check_beam(self) -> ExperimentConfig:
        longest = max(*self.evaluation.ks, self.recommendation.top_k)
        if self.evaluation.beam_width < longest:
            raise ValueError(
                f"evaluation.beam_width is {self.evaluation.beam_width}, but lists of {longest} "
                "items are requested: raise it, because a beam finds no more items than its width"
            )
        return self


# Settings sections that manifests record under the same names as `ExperimentConfig`.
RECORDED = {"embedding", "features", "tokenizer", "item_vectors", "evaluation", "recommendation"}


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the JSON text of each setting in nested mappings.

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
    """Return the settings of a section as a mapping, with some values replaced."""
    found = {name: getattr(settings, name) for name in type(settings).model_fields}
    for name, value in values.items():
        found[name] = _put_one(found.get(name), value)
    return found


def _put_one(before: Any, value: Any) -> Any:
    """Return the new value of a setting: the recorded value, merged into a section if it is one."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(before, Config):
        return _put(before, value)
    named = before if isinstance(before, Mapping) else {}
    return {name: _put_one(named.get(name), entry) for name, entry in value.items()}


_DEFAULT_SOURCE = DataConfig.model_fields["source"].default
_DEFAULT_KIND = ModelConfig.model_fields["kind"].default


def _value_of(values: Mapping[str, Any], section: str, name: str) -> Any:
    """Return a setting from values that are not validated yet.

    A section may be a mapping, a settings object, or one word that is its kind.
    """
    found = values.get(section)
    if isinstance(found, Mapping):
        return found.get(name)
    return getattr(found, name, found)


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(entry) for key, entry in value.items()}
    return value.absolute() if isinstance(value, Path) else value
