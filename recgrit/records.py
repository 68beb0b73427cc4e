"""Types of the settings and summaries that stages record in their manifests.

The digest of a manifest can be recomputed by anyone (`recgrit.manifests`). Before the settings and
results in a manifest are shown or used, they are therefore compared with the types here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recgrit.errors import ArtifactError
from recgrit.layout import FOLDERS
from recgrit.manifests import Manifest

Count = Annotated[int, Field(ge=0, lt=2**63)]
Numbers = dict[str, float]
Settings = dict[str, Any]


class _Record(BaseModel):
    """Base class of recorded settings and summaries: strict types, with further fields allowed.

    Attributes:
        together: Names of the fields that have to be either all present or all absent.
    """

    together: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        said = self.together & self.model_fields_set
        if said and said != self.together:
            raise ValueError(f"lacks {', '.join(sorted(self.together - said))}")
        return self


class _Seeded(_Record):
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class _DataSettings(_Record):
    source: str
    table: Settings


class _EmbedSettings(_Seeded):
    embedding: Settings
    features: Settings


class _TokenizeSettings(_Seeded):
    tokenizer: Settings


class _ModelSettings(_Seeded):
    model: str
    settings: Settings


class _EvaluationSettings(_Seeded):
    evaluation: Settings


class _ListSettings(_Record):
    beam_width: Count
    recommendation: Settings


class _FunnelRow(_Record):
    step: str
    interactions: Count
    users: Count | None
    items: Count | None
    dropped: Count | None
    counted: Count | None


class _DataSummary(_Record):
    source: str
    num_users: Count
    num_items: Count
    num_interactions: Count
    num_evaluated_users: Count
    num_untrained_items: Count
    funnel: list[_FunnelRow]


class _EmbedSummary(_Record):
    encoder: str
    encoder_space: str | None
    template: str | None
    features: str
    text_dim: Count
    feature_dim: Count


class _Level(_Record):
    level: Count
    codebook_size: Count
    codebook_usage: float
    perplexity: float
    dead_codes: Count
    residual_norm: float | None
    neighbours_kept: float | None


class _Diagnostics(_Record):
    levels: list[_Level]
    unique_share: float
    collision_rate: float
    largest_bucket: Count
    gini: float
    entropy_ratio: float


class _Learning(_Record):
    epoch: Count


class _TokenizeSummary(_Record):
    together = frozenset({"published", "num_unknown"})

    num_items: Count
    codebook_sizes: list[Count]
    disambiguation_level: Count | None
    unique_by: str
    num_moved: Count
    diagnostics: _Diagnostics
    warnings: list[str]
    published: str = ""
    num_unknown: Count = 0
    ids: _Learning | None = None


class _ModelSummary(_Record):
    together = frozenset({"best_epoch", "num_epochs", "precision", "best"})

    model: str
    num_parameters: dict[str, Count]
    best_epoch: Count = 0
    num_epochs: Count = 0
    precision: str = ""
    best: Numbers = {}
    train_seconds: float = 0.0
    neighbour_strengths: Numbers = {}


class _EvaluationSummary(_Record):
    model: str
    metrics: dict[str, dict[str, Numbers]]
    beam_agreement: float | None = None


class _ListSummary(_Record):
    num_users: Count
    num_rows: Count


class _BundleSummary(_Record):
    num_items: Count
    num_listed: Count
    num_trained: Count
    num_added: Count
    num_removed: Count


# Types of the settings and the summary of each stage and of a bundle. The settings of a bundle are
# checked when it is opened. Stages that are not listed are baselines and have the types of "train".
BUNDLE = "bundle"
RECORDS: dict[str, tuple[type[_Record], type[_Record]]] = {
    "prepare": (_DataSettings, _DataSummary),
    "embed": (_EmbedSettings, _EmbedSummary),
    "tokenize": (_TokenizeSettings, _TokenizeSummary),
    "train": (_ModelSettings, _ModelSummary),
    "evaluate": (_EvaluationSettings, _EvaluationSummary),
    "recommend": (_ListSettings, _ListSummary),
    BUNDLE: (_Record, _BundleSummary),
}
assert RECORDS.keys() == {*FOLDERS, BUNDLE}


def require_record(manifest: Manifest, stage: str, directory: Path) -> None:
    """Refuse a manifest whose settings or summary do not have the types of its stage.

    Args:
        manifest: Manifest to check.
        stage: Name of the stage whose folder the manifest was read from.
        directory: Path of this folder, for messages.

    Raises:
        ArtifactError: The manifest is of another stage, lacks a field, or has a field of another
            type.
    """
    kinds = RECORDS.get(stage, RECORDS["train"])
    wrong = "" if manifest.stage == stage else f"it is of the stage {manifest.stage[:80]!r}"
    for part, kind in zip(("config", "summary"), kinds, strict=True):
        try:
            kind.model_validate(getattr(manifest, part))
        except ValidationError as error:
            first = error.errors()[0]
            wrong = f"{'.'.join(map(str, (part, *first['loc'])))[:200]}: {first['msg']}"
    if wrong:
        raise ArtifactError(
            f"The manifest of {directory} is not a manifest of the stage {stage} ({wrong}). "
            "Delete the folder and run again."
        )
