"""Test cornac's models on recgrit's split: exported data, time budgets and evaluated lists."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recgrit.data.recommendations import NO_ITEM
from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.foreign_lists import without_history

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    pytest.importorskip("cornac", reason="needs the extra cornac")
    sys.path.insert(0, str(PIPELINES))
    try:
        return importlib.import_module("cornac_baselines")
    finally:
        sys.path.remove(str(PIPELINES))


def build_split(num_items: int = 60) -> SequenceSplit:
    """Build a split of three users who move through the items from different starts.

    Each user has two targets.
    """
    walks = [np.arange(start, start + 12) % num_items for start in (0, 20, 40)]
    offsets = np.arange(4, dtype=np.int64) * 12
    return SequenceSplit(
        items=np.concatenate(walks).astype(np.int32),
        offsets=offsets,
        train_ends=offsets[1:] - 2,
        valid_targets=offsets[1:] - 2,
        test_targets=offsets[1:] - 1,
        num_items=num_items,
    )


class NextInLine:
    """A model that knows the pattern, never stops training, and needs four seconds per epoch."""

    def __init__(self, num_items: int, reached: int | None = None) -> None:
        self.seconds = 100.0
        self.num_items = num_items
        self.reached = reached
        self.model = torch.nn.Linear(2, 3)
        self.read: list[list[int]] = []

    def fit(self, data: Any) -> None:
        while True:
            self.read = [list(data.uir_tuple[1][rows]) for rows in data.sessions.values()]
            self.seconds += 4

    def score(self, user: object, history: list[int]) -> np.ndarray:
        ahead = (np.arange(self.num_items) - history[-1] - 1) % self.num_items
        scores = -ahead.astype(float)
        if self.reached is not None:
            scores[ahead >= self.reached] = -1e10
        return scores


def test_a_model_sees_the_training_part_and_ends_in_time(
    pipeline: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = build_split()
    data = pipeline.build_data(split, np.zeros((60, 4), dtype=np.float32))
    model = NextInLine(60)
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: model.seconds))
    found = pipeline.fit(model, data, split, 10)
    assert found.summary == {"epochs": 3, "fit_seconds": 12, "parameters": 9}
    bounds = zip(split.offsets, split.train_ends, strict=False)
    assert model.read == [split.items[start:end].tolist() for start, end in bounds]
    assert data.num_items == split.num_items, "items that nobody trains on count, too"


def test_lists_of_cornac_are_read_and_its_metrics_agree(pipeline: ModuleType) -> None:
    split, users = build_split(), np.arange(3)
    data = pipeline.build_data(split, np.zeros((60, 4), dtype=np.float32))
    found = pipeline.fit(NextInLine(60), data, split, 0.0)
    assert found.lists.items[:, 0].tolist() == split.targets("test", users).tolist()
    assert found.metrics == {"recall_at_10": 1, "ndcg_at_10": 1}
    unseen = without_history(found.lists, split, "test")
    assert (unseen.items[:, :20] != NO_ITEM).all(), "still a full list"


def test_what_a_beam_did_not_reach_is_not_listed(pipeline: ModuleType) -> None:
    split = build_split()
    data = pipeline.build_data(split, np.zeros((60, 4), dtype=np.float32))
    found = pipeline.fit(NextInLine(60, reached=7), data, split, 0.0)
    assert ((found.lists.items != NO_ITEM).sum(axis=1) == 7).all()
    assert found.lists.top_k >= 20, "no shorter than what is evaluated"


def test_fewer_users_are_evaluated_and_all_are_trained_on(pipeline: ModuleType) -> None:
    split = build_split()
    fewer = pipeline.limit_users(split, 2)
    assert len(fewer.target_users("test")) == len(fewer.target_users("valid")) == 2
    assert np.array_equal(fewer.train_ends, split.train_ends)
    assert pipeline.limit_users(split, 3) is split
