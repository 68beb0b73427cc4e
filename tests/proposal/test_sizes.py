"""The proposed sizes equal those of the published configs for data of the same size."""

from __future__ import annotations

from pathlib import Path

import pytest

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.proposal.sizes import Kept, choose_sizes

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "long_history"),
    [
        ("amazon2014-beauty", 22_363, 12_101, 198_502, 14),
        ("amazon2014-sports", 35_598, 18_357, 296_337, 13),
        ("movielens-1m", 6_040, 3_416, 999_611, 400),
    ],
)
def test_large_data_get_the_sizes_of_their_published_configuration(
    name: str, users: int, items: int, interactions: int, long_history: int
) -> None:
    config = load_config(ExperimentConfig, CONFIGS / f"{name}.yaml")
    kept = Kept(
        min_user=5,
        min_item=5,
        num_users=users,
        num_items=items,
        num_interactions=interactions,
        long_history=long_history,
    )
    sizes = choose_sizes(kept, interactions - 3 * users)
    assert sizes.num_levels == config.tokenizer.num_levels
    assert sizes.codebook_size == config.tokenizer.codebook_size
    for field in (
        "tree_levels",
        "model_dim",
        "num_layers",
        "num_heads",
        "dropout",
        "batch_targets",
    ):
        assert getattr(sizes, field) == getattr(config.retriever, field), field
    assert sizes.learning_rate == config.retriever.learning_rate
    # Data with short histories need no long history_length.
    assert min(long_history, config.retriever.history_length) <= sizes.history_length
    assert sizes.history_length <= config.retriever.history_length


@pytest.mark.parametrize(
    ("items", "tree_levels"), [(300, 0), (10_000, 0), (10_001, None), (2_000_000, None)]
)
def test_small_catalogues_choose_among_all_items_at_once(
    items: int, tree_levels: int | None
) -> None:
    kept = Kept(
        min_user=5,
        min_item=5,
        num_users=20_000,
        num_items=items,
        num_interactions=500_000,
        long_history=150,
    )
    assert choose_sizes(kept, 400_000).tree_levels == tree_levels
