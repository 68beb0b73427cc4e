"""Names of the files and folders in a run folder."""

from __future__ import annotations

from pathlib import Path

TOKENIZER_NAME = "tokenizer.safetensors"
# Folder in the embed stage of a warm-started run (retriever.init_from): a bundle of the source run
# to which this run's new items are added.
SOURCE_FOLDER = "source"
TRANSFORM_NAME = "feature_transform.safetensors"
# File that records which items have a vector in each additional block of features.
BLOCKS_NAME = "feature_blocks.safetensors"
EPOCHS_NAME = "epochs.parquet"
LISTS_NAME = "recommendations.parquet"
# Files of a tokenizer that learned its item vectors: the vectors that it quantizes, and a table of
# the epochs of its training.
LATENTS_NAME = "latents.npy"
ID_EPOCHS_NAME = "id_epochs.parquet"
# Folder with the checkpoints from which an interrupted training is resumed.
CHECKPOINTS_NAME = ".training"
# Folder with the finished shards of a stage whose work is split into shards.
SHARDS_NAME = ".shards"
# Folder with the runs of the folds, which test on earlier windows of time.
FOLDS_NAME = "folds"
# File that exists until a tracked run has ended.
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
    """Return the name of the stage that fits a baseline."""
    return f"{_BASELINE}{kind}"


def is_stage(name: str) -> bool:
    """Return whether a text is a possible name of a stage.

    >>> is_stage("train"), is_stage("baseline-my.module.Model"), is_stage("baseline-../x")
    (True, True, False)
    """
    kind = name.removeprefix(_BASELINE)
    return name in FOLDERS or (kind != name and all(map(str.isidentifier, kind.split("."))))


def stage_directory(run_directory: Path, stage: str) -> Path:
    """Return the folder of a stage's artifact in a run folder."""
    if stage.startswith(_BASELINE):
        return run_directory / "baselines" / stage.removeprefix(_BASELINE)
    return run_directory / FOLDERS[stage]
