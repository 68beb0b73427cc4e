"""Test which files of a run are equal bit by bit (docs/explanation/determinism.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from recgrit.disk import MANIFEST_NAME

# Files that contain measured times or the folder of the run.
OF_THE_CLOCK = {MANIFEST_NAME, "epochs.parquet", "config.yaml"}
LISTS = "recommendations/recommendations.parquet"
WEIGHTS = "model/weights.safetensors"


def content_of(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in OF_THE_CLOCK
    }


@pytest.fixture
def again(
    new_config: Callable[..., Path], run_command: Callable[..., Any], tmp_path: Path
) -> Callable[..., Path]:
    """Run the settings of the finished run in another environment."""

    def run(*settings: str, **environment: str) -> Path:
        result = run_command("run", new_config(), *settings, **environment)
        assert result.code == 0, result.err
        return tmp_path / "runs" / "new"

    return run


def differing(one: Path, other: Path) -> set[str]:
    first, second = content_of(one), content_of(other)
    assert set(first) == set(second)
    return {name for name in first if first[name] != second[name]}


def test_an_equal_seed_gives_equal_bytes_in_every_environment(
    tiny_run: Any, again: Callable[..., Path]
) -> None:
    other = again(PYTHONHASHSEED="7", LC_ALL="C", TZ="Asia/Tokyo", POLARS_MAX_THREADS="1")
    assert differing(tiny_run.directory, other) == set()


def test_the_size_of_shards_changes_the_last_digits_of_scores(
    tiny_run: Any, again: Callable[..., Path]
) -> None:
    other = again("engine.shard_users=7", "engine.shard_items=9")
    assert differing(tiny_run.directory, other) <= {LISTS}
    first, second = (pl.read_parquet(run / LISTS) for run in (tiny_run.directory, other))
    assert first.drop("score").equals(second.drop("score"))
    np.testing.assert_allclose(first["score"], second["score"], atol=1e-5)


def test_the_number_of_threads_changes_the_last_digits_of_weights(
    tiny_run: Any, again: Callable[..., Path]
) -> None:
    other = again(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
    changed = differing(tiny_run.directory, other)
    assert not [name for name in changed if name.startswith(("data", "embeddings", "semantic_ids"))]
    first, second = (load_file(run / WEIGHTS) for run in (tiny_run.directory, other))
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], atol=1e-3, err_msg=name)
