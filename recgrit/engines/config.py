"""Settings of the engine, without importing torch or Ray, so that settings are read quickly."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from recgrit.config import Config

# How long processes wait for each other. The longest waits are those in which the first process
# fits k-means or counts neighbours.
PROCESSES_PATIENCE = timedelta(hours=12)


class EngineConfig(Config):
    """Settings for where the slow work of the stages runs. ``engine=ray`` sets ``kind`` to ``ray``.

    These settings change results by rounding only. They are therefore not part of the key of a
    stage, and a stage is not run again when they change.

    Args:
        kind: ``local`` works in this process, or in all processes of torchrun if torchrun started
            this one. ``ray`` works on a Ray cluster.
        address: Address of a running Ray cluster, as ``ray.init`` reads it, such as ``auto`` or
            ``host:6379``. None uses the cluster that ``RAY_ADDRESS`` names, or starts one on this
            machine.
        num_workers: Largest number of Ray workers that process shards. None uses as many as the
            cluster has room for.
        cpus_per_worker: Number of CPU cores of each Ray worker, which is also its number of
            threads.
        gpus_per_worker: Number of GPUs of each Ray worker. With a fraction such as 0.5, several
            workers share a GPU.
        train_workers: Number of processes that fit the tokenizer and train the retriever together
            on Ray. Each has one GPU if ``gpus_per_worker`` is not 0. None trains in this process.
        shard_texts: Number of item texts that are encoded in one shard. Each finished shard is
            saved, so an interrupted stage continues with the next one.
        shard_items: Number of items that get their codes in one shard.
        shard_users: Number of users for whom recommendations are computed in one shard.
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
