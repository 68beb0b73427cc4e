"""Run the whole pipeline on real ratings, by the command of the README."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from recgrit.runs import Run


def test_latest_small_beats_popularity(
    real_data: Callable[[str], Path], run_command: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {
        "data": {
            "source": "movielens-latest-small",
            "path": str(real_data("ml-latest-small")),
            "min_item_interactions": 10,
        },
        "run": {"dir": str(tmp_path / "runs" / "small")},
        "embedding": {"encoder": "lsa", "dim": 64},
        "tokenizer": {"codebook_size": 64, "epochs": 5},
        "retriever": {
            "model_dim": 64,
            "epochs": 2,
            "dropout": 0.2,
            "learning_rate": 0.003,
            "warmup_steps": 50,
        },
        "evaluation": {"num_bootstrap": 200, "exact_users": 50},
        "tracking": {"backend": "none"},
    }
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = run_command("run", config, "--json")
    assert done.code == 0, done.err
    values = done.json()
    assert values["num_users"] == 610
    # The model is about three times as good as popularity. The test requires 1.5 times.
    assert (
        values["valid"]["ndcg_at_10"]
        > 1.5 * values["baselines"]["popularity"]["valid"]["ndcg_at_10"]
    )
    run = Run(tmp_path / "runs" / "small")
    found = run.recommend(["1"], top_k=10)
    assert found["title"].null_count() == 0
    assert not set(found["item_id"]) & set(run.history("1")["item_id"])
