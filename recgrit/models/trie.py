"""The trie model: a retriever that walks the tree of existing semantic IDs, as a plug."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recgrit.models.model import CatalogueInputs
from recgrit.models.network import NetworkModel, count_neighbours
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.trie_ranker import TrieRanker

if TYPE_CHECKING:
    from recgrit.data.splits import SequenceSplit


class TrieModel(NetworkModel[TrieRetriever]):
    """The trie-softmax retriever over an ID table."""

    settings_class = RetrieverConfig
    needs = ("embed", "tokenize")
    searches = True
    can_append = True
    valid_beam_width = "valid_beam_width"

    @classmethod
    def build(cls, items: CatalogueInputs, settings: RetrieverConfig) -> TrieRetriever:
        """An untrained retriever, its neighbours not counted yet.

        Raises:
            ConfigError: ``settings.node_buckets`` is less than a codebook.
        """
        table = items.require_ids()
        return TrieRetriever(
            table.codes,
            table.codebook_sizes,
            disambiguation_level=table.disambiguation_level,
            tree_levels=settings.tree_levels,
            train_items=torch.from_numpy(items.trained),
            known_items=(
                torch.arange(len(table)) < items.num_known if items.num_known < len(table) else None
            ),
            model_dim=settings.model_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            history_length=settings.history_length,
            dropout=settings.dropout,
            node_dropout=settings.node_dropout,
            label_smoothing=settings.label_smoothing,
            neighbours=settings.neighbours,
            seen_scores=settings.seen_scores,
            size=settings.size,
            node_buckets=settings.node_buckets,
            trie_softmax=settings.trie_softmax,
        )

    @classmethod
    def count(cls, network: TrieRetriever, items: CatalogueInputs, split: SequenceSplit) -> None:
        """Count the neighbours."""
        count_neighbours(network.neighbours, split, items.likeness)

    @classmethod
    def count_parameters(cls, network: TrieRetriever) -> dict[str, int]:
        """Trained parameters of each part."""
        return network.num_parameters()

    @classmethod
    def put_state(
        cls, network: TrieRetriever, state: dict[str, torch.Tensor], items: CatalogueInputs
    ) -> None:
        """Put saved weights into a retriever; later items get neighbours by likeness."""
        neighbours = network.neighbours
        if neighbours is not None:
            for name, rows in neighbours.state_dict(prefix="neighbours.").items():
                if rows.dim() > 1:
                    rows[: len(state[name])] = state[name]
                    state[name] = rows
        network.load_state_dict(state)
        joined = np.arange(items.num_items) >= items.num_known
        if neighbours is not None and joined.any():
            assert items.likeness is not None
            neighbours.add_items(items.likeness, ~joined, joined & items.listed)

    def ranker(self, *, beam_width: int | None = None, allowed: Tensor | None = None) -> TrieRanker:
        """See `Model.ranker`."""
        return TrieRanker(
            self.network,
            beam_width=beam_width,
            allowed=allowed,
            precision=self.precision,
        )

    def valid_ranker(self, beam_width: int | None) -> TrieRanker:
        """The transformer alone chooses the epoch.

        At first neighbours know more than it does. Beside them, its progress would not show.
        """
        return TrieRanker(
            self.network, beam_width=beam_width, precision=self.precision, neighbours=False
        )
