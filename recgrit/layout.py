"""What lies where in a run folder."""

from __future__ import annotations

from pathlib import Path

TOKENIZER_NAME = "tokenizer.safetensors"
# In the embed stage of a run that trains on from another: a bundle of that other and of new items.
SOURCE_FOLDER = "source"
TRANSFORM_NAME = "feature_transform.safetensors"
# Which items have a vector of each further block of features.
BLOCKS_NAME = "feature_blocks.safetensors"
EPOCHS_NAME = "epochs.parquet"
LISTS_NAME = "recommendations.parquet"
# Of a tokenizer that learned item vectors: what it quantizes, and the epochs of its IDs.
LATENTS_NAME = "latents.npy"
ID_EPOCHS_NAME = "id_epochs.parquet"
# Holds what an interrupted training needs to go on.
CHECKPOINTS_NAME = ".training"
# Holds what is done of a stage that is done in shards.
SHARDS_NAME = ".shards"
# Holds the runs of the windows of time before a run's own.
FOLDS_NAME = "folds"
# There while a tracked run has not come to its end.
TRACKING_NAME = ".tracking.json"

# The folder of each stage, in the order the stages run.
FOLDERS: dict[str, str] = {
    "prepare": "data",
    "embed": "embeddings",
    "tokenize": "semantic_ids",
    "train": "model",
    "evaluate": "evaluation",
    "recommend": "recommendations",
}
_BASELINE = "baseline-"


def baseline_stage(kind: str) -> str:
    """Name of the stage that fits a baseline."""
    return f"{_BASELINE}{kind}"


def is_stage(name: str) -> bool:
    """Whether a stage may be called so.

    >>> is_stage("train"), is_stage("baseline-my.module.Model"), is_stage("baseline-../x")
    (True, True, False)
    """
    kind = name.removeprefix(_BASELINE)
    return name in FOLDERS or (kind != name and all(map(str.isidentifier, kind.split("."))))


def stage_directory(run_directory: Path, stage: str) -> Path:
    """Where a stage of this run has its artifact."""
    if stage.startswith(_BASELINE):
        return run_directory / "baselines" / stage.removeprefix(_BASELINE)
    return run_directory / FOLDERS[stage]
