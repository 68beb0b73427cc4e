"""The trie model: a retriever that walks the tree of existing semantic IDs, as a plug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recgrit.models.model import CatalogueInputs
from recgrit.models.network import NetworkModel, count_neighbours
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.trie_ranker import TrieRanker

if TYPE_CHECKING:
    from recgrit.data.splits import SequenceSplit

# Items whose vectors are made at a time.
ITEMS_AT_ONCE = 65_536


@dataclass(frozen=True)
class WarmStart:
    """A retriever to train on.

    Args:
        network: Trained, of the same sizes, over a catalogue that has every item.
        rows: int64 ``[N]``, the row of each item in that catalogue.
    """

    network: TrieRetriever
    rows: npt.NDArray[np.int64]


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
            attributes=items.attributes,
            user_attributes=items.user_attributes,
        )

    @classmethod
    def count(cls, network: TrieRetriever, items: CatalogueInputs, split: SequenceSplit) -> None:
        """Count the neighbours."""
        count_neighbours(network.neighbours, split, items.likeness)

    @classmethod
    @torch.no_grad()
    def start_from(cls, network: TrieRetriever, start: WarmStart) -> None:
        """Begin with the weights of another, and with the vector of every node there."""
        own = network.nodes.node_embedding.weight
        theirs = dict(start.network.named_parameters())
        for name, value in network.named_parameters():
            if value is not own:
                value.copy_(theirs[name])
        places = torch.zeros(len(network.nodes.node_levels), dtype=torch.int32)
        # Equal IDs, so the paths have equal nodes.
        places[network.trie.paths] = start.network.trie.paths[torch.from_numpy(start.rows)]
        network.nodes.start_from(start.network.nodes, places)

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

    @torch.inference_mode()
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """What the history encoder reads of items: the sums over their paths, ``[N, D]``."""
        nodes = self.network.nodes.table()
        items = torch.arange(self.network.num_items, device=self.network.trie.paths.device)
        parts = [self.network.item_vectors(some, nodes) for some in items.split(ITEMS_AT_ONCE)]
        return np.asarray(torch.cat(parts).float().cpu().numpy(), dtype=np.float32)

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
