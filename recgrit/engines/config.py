"""Settings of the engine; free of torch and Ray, so that a config is read in no time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from recgrit.config import Config

# How long processes wait for one another, also while the first fits k-means or counts neighbours.
PROCESSES_PATIENCE = timedelta(hours=12)


class EngineConfig(Config):
    """Where the work is done. ``engine=ray`` for short.

    Nothing here changes a result but by rounding, so none of it is part of a stage's key.

    Args:
        kind: ``local`` is this process, and all processes of torchrun where it started this one;
            ``ray`` maps shards with Ray Data.
        address: Of a running Ray cluster, as ``ray.init`` takes it (``auto``, ``host:6379``); None
            for the one that ``RAY_ADDRESS`` names, or a new one on this machine.
        num_workers: Ray actors that work on shards; None for as many as there is room for.
        cpus_per_worker: Cores of each, and threads it computes with.
        gpus_per_worker: GPUs of each; a fraction lets several share one.
        train_workers: Processes that fit the tokenizer and train the retriever together on Ray, a
            GPU each where ``gpus_per_worker`` is not 0; None trains in this process.
        shard_texts: Item texts encoded at a time.
        shard_items: Items given codes at a time.
        shard_users: Users recommended to at a time.
    """

    kind: Literal["local", "ray"] = "local"
    address: str | None = None
    num_workers: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    train_workers: int | None = Field(None, ge=1)
    shard_texts: int = Field(8192, ge=1)
    shard_items: int = Field(65_536, ge=1)
    shard_users: int = Field(65_536, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _take_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value
