"""Run the contract tests of every built-in model."""

from __future__ import annotations

from recgrit.models.registry import MODELS
from tests.models.contract import TINY_TRAINING, TINY_TRANSFORMER, ModelContract


class TestTrie(ModelContract):
    kind = "trie"
    settings = TINY_TRANSFORMER | {"node_dropout": 0.1, "valid_beam_width": 20}


class TestSASRec(ModelContract):
    kind = "sasrec"
    settings = TINY_TRANSFORMER


class TestSASRecWithNeighbours(ModelContract):
    kind = "sasrec"
    settings = TINY_TRANSFORMER | {"neighbours": ("near", "next", "alike")}


class TestTiger(ModelContract):
    kind = "tiger"
    settings = TINY_TRAINING | {
        "epochs": 8,
        "model_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "head_dim": 8,
        "hidden_dim": 32,
        "history_length": 6,
        "dropout": 0.0,
    }


class TestDecoder(ModelContract):
    kind = "decoder"
    settings = TINY_TRANSFORMER | {"epochs": 8, "history_length": 6, "dropout": 0.0}


class TestTransitions(ModelContract):
    kind = "transitions"


class TestItemKNN(ModelContract):
    kind = "item_knn"


class TestPopularity(ModelContract):
    """Popularity only learns which items occur in training, so its recall is low."""

    kind = "popularity"
    least_recall = 0.3


def test_every_built_in_model_has_a_contract_test() -> None:
    assert {found.kind for found in ModelContract.__subclasses__()} >= set(MODELS)
