"""The trie model, which implements `Model` with the retriever over the trie of semantic IDs."""

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

# Number of items whose vectors are computed at a time, which bounds memory.
ITEMS_AT_ONCE = 65_536


@dataclass(frozen=True)
class WarmStart:
    """A trained retriever whose weights another training starts from.

    Args:
        network: The trained retriever, with the same sizes as the new one. Its catalogue contains
            every item of the new catalogue.
        rows: Row of each item of the new catalogue in the catalogue of ``network``, int64 ``[N]``.
    """

    network: TrieRetriever
    rows: npt.NDArray[np.int64]


class TrieModel(NetworkModel[TrieRetriever]):
    """A model that ranks items with the retriever over the trie of their semantic IDs."""

    settings_class = RetrieverConfig
    needs = ("embed", "tokenize")
    searches = True
    can_append = True
    valid_beam_width = "valid_beam_width"

    @classmethod
    def build(cls, items: CatalogueInputs, settings: RetrieverConfig) -> TrieRetriever:
        """Return an untrained retriever, whose neighbours are not counted yet.

        Raises:
            ConfigError: ``settings.node_buckets`` is smaller than the largest codebook.
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
        """Count the item neighbours in the training histories and store them in the network."""
        count_neighbours(network.neighbours, split, items.likeness)

    @classmethod
    @torch.no_grad()
    def start_from(cls, network: TrieRetriever, start: WarmStart) -> None:
        """Copy the weights of a trained retriever, including the vector of every node.

        Args:
            network: The untrained retriever that gets the weights.
            start: The trained retriever, and the rows of the items in its catalogue.
        """
        own = network.nodes.node_embedding.weight
        theirs = dict(start.network.named_parameters())
        for name, value in network.named_parameters():
            if value is not own:
                value.copy_(theirs[name])
        places = torch.zeros(len(network.nodes.node_levels), dtype=torch.int32)
        # Items have the same IDs in both catalogues, so their paths lead through the same nodes.
        places[network.trie.paths] = start.network.trie.paths[torch.from_numpy(start.rows)]
        network.nodes.start_from(start.network.nodes, places)

    @classmethod
    def count_parameters(cls, network: TrieRetriever) -> dict[str, int]:
        """Return the number of trained parameters of each part of the network, by name."""
        return network.num_parameters()

    @classmethod
    def put_state(
        cls, network: TrieRetriever, state: dict[str, torch.Tensor], items: CatalogueInputs
    ) -> None:
        """Load saved weights into a retriever, and give neighbours to appended items.

        Appended items have no counted neighbours. They get the neighbours of the items most similar
        to them.
        """
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
        """Return the item vectors that the history encoder reads, float32 ``[N, D]``.

        The vector of an item is the scaled sum of the node vectors on its path through the trie,
        and of its attributes if the model uses some.
        """
        nodes = self.network.nodes.table()
        items = torch.arange(self.network.num_items, device=self.network.trie.paths.device)
        parts = [self.network.item_vectors(some, nodes) for some in items.split(ITEMS_AT_ONCE)]
        return np.asarray(torch.cat(parts).float().cpu().numpy(), dtype=np.float32)

    def ranker(self, *, beam_width: int | None = None, allowed: Tensor | None = None) -> TrieRanker:
        """Return a ranker that walks the trie; see `Model.ranker`."""
        return TrieRanker(
            self.network,
            beam_width=beam_width,
            allowed=allowed,
            precision=self.precision,
        )

    def valid_ranker(self, beam_width: int | None) -> TrieRanker:
        """Return a ranker without neighbours, for the validation after each epoch.

        At the start of the training, neighbours rank better than the transformer. With neighbours,
        the validation would not show the progress of the transformer.
        """
        return TrieRanker(
            self.network, beam_width=beam_width, precision=self.precision, neighbours=False
        )
