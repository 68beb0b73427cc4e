"""What models over code tokens share: layers, tables of codes, and decoding down the trie.

Such a model takes a softmax over all codes of a level, and so puts probability on codes that no
item has. It is kept to the trie only while decoding, by the same beam search as the trie model
(`recgrit.retrieval.decoding`). The beams of a user are further positions of one sequence under a
mask, not copies of the user's memory, which makes decoding as fast as such a model allows.

Shapes: B users, S history tokens, L levels, W beams, C children, K codes, M samples, D dimensions,
Q query positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.errors import ConfigError
from recgrit.models.model import CatalogueInputs
from recgrit.models.network import NetworkModel
from recgrit.ranking import NEVER, Histories, Ranked, TrainingLoss, require_items
from recgrit.retrieval.config import search_width
from recgrit.retrieval.decoding import LeafFilter, beam_search
from recgrit.retrieval.dropout import Dropout
from recgrit.retrieval.frontier import Frontier
from recgrit.retrieval.trie_tensors import TrieTensors
from recgrit.semantic_ids.trie import Trie, build_trie
from recgrit.training.weighing import cross_entropy

# Tokens of beams that are one sequence under a mask: more than searches of usual width have.
MASKED_TOKENS = 512


class Attention(nn.Module):
    """Multi-head attention from one sequence to another, under a mask."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """``[B, Q, D]`` from ``x`` ``[B, Q, D]`` to memory ``[B, S, D]``, mask ``[B, Q, S]``."""
        query = self._split(self.query(x))
        key, value = self.key_value(memory).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            query,
            self._split(key),
            self._split(value),
            attn_mask=mask.unsqueeze(1),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class TokenLayer(nn.Module):
    """Self-attention, attention to an encoder's output if there is one, and a feed-forward net."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        head_dim: int,
        hidden_dim: int,
        dropout: float,
        crosses: bool,
    ) -> None:
        super().__init__()
        settings = {"num_heads": num_heads, "head_dim": head_dim}
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, dropout=dropout, **settings)
        self.cross_norm = nn.LayerNorm(dim) if crosses else None
        self.cross_attention = Attention(dim, dropout=dropout, **settings) if crosses else None
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden_dim, dim),
        )
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        before: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """``[B, Q, D]``; ``before`` ``[B, S, D]`` are earlier positions, not computed again."""
        known = x if before is None else torch.cat([before, x], dim=1)
        x = x + self.dropout(self.attention(self.norm(x), self.norm(known), mask))
        if self.cross_attention is not None:
            assert self.cross_norm is not None
            assert memory is not None
            assert memory_mask is not None
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, memory_mask))
        out: Tensor = x + self.dropout(self.feed_forward(x))
        return out


class TokenTables(nn.Module):
    """Embeddings of the codes of all levels; also what codes are scored by."""

    item_tokens: Tensor

    def __init__(self, codes: Tensor, codebook_sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.sizes = codebook_sizes
        self.offsets = [sum(codebook_sizes[:level]) for level in range(len(codebook_sizes))]
        self.embedding = nn.Embedding(sum(codebook_sizes), dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        tokens = codes.long() + torch.tensor(self.offsets)
        self.register_buffer("item_tokens", tokens, persistent=False)
        self.scale: float = dim**0.5

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.sizes)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input vectors of tokens, of about unit variance."""
        vectors: Tensor = self.scale * self.embedding(tokens)
        return vectors

    def score(self, states: Tensor, level: int) -> Tensor:
        """Scores of all codes of a level, ``[..., K]``."""
        first = self.offsets[level]
        return states @ self.embedding.weight[first : first + self.sizes[level]].T

    def loss(self, states: Tensor, wanted: Tensor, weights: Tensor | None) -> TrainingLoss:
        """Of states ``[M, L, D]`` and the items that follow ``[M]``: the mean of -log P(item).

        Each times its weight ``[M]``, where there are weights.
        """
        tokens = self.item_tokens[wanted]
        total, accuracy = states.new_zeros((), dtype=torch.float32), []
        for level, first in enumerate(self.offsets):
            scores = self.score(states[:, level], level).float()
            total = total + cross_entropy(scores, tokens[:, level] - first, weights)
            right = scores.detach().argmax(dim=-1) == tokens[:, level] - first
            accuracy.append(right.float().mean())
        return TrainingLoss(total, torch.stack(accuracy))


class TokenNetwork(nn.Module):
    """A model that writes the next item's codes one by one.

    Args:
        tables: Embeddings of the codes.
        history_length: Longest history, in items.
    """

    def __init__(self, tables: TokenTables, *, history_length: int) -> None:
        super().__init__()
        self.tables = tables
        self.history_length = history_length

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """What `next_states` needs of histories."""
        raise NotImplementedError

    def next_states(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """States ``[B, W, D]`` after what was read and the tokens ``[B, W, l]`` of each beam."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenWalk:
    """A model over tokens after some histories; what a beam carries are its tokens ``[B, W, l]``.

    Args:
        model: In eval mode.
        trie: Of the catalogue.
        context: What ``model.read`` returned.
        num_users: B.
    """

    model: TokenNetwork
    trie: TrieTensors
    context: tuple[Tensor, ...]
    num_users: int

    def expand(self, chosen: Tensor | None, frontier: Frontier, level: int) -> Tensor:
        """Log-probabilities of the children given their node, ``[B, W, C]``; -inf for none."""
        if chosen is None:
            chosen = frontier.firsts.new_zeros(*frontier.firsts.shape, 0, dtype=torch.long)
        # Beams do not see one another, and the mask between the tokens of those that are in one
        # sequence grows with their square: of a wide search some are a sequence at a time.
        most = max(1, MASKED_TOKENS // (chosen.shape[2] + 1))
        parts = [self.model.next_states(self.context, part) for part in chosen.split(most, dim=1)]
        states = torch.cat(parts, dim=1)
        log_probs = self.model.tables.score(states, level).float().log_softmax(dim=-1)  # [B, W, K]
        codes = self.trie.node_codes[frontier.children].long()
        return log_probs.gather(-1, codes).masked_fill(~frontier.present, NEVER)

    def extend(self, chosen: Tensor | None, nodes: Tensor, level: int) -> Tensor:
        """The tokens ``[B, W, l + 1]`` with those of nodes ``[B, W]`` at their end."""
        tables = self.model.tables
        tokens = (tables.offsets[level] + self.trie.node_codes[nodes]).long().unsqueeze(-1)
        # A spare beam's token need not exist on this level; it is never listed.
        tokens = tokens.clamp_max(len(tables.embedding.weight) - 1)
        return tokens if chosen is None else torch.cat([chosen, tokens], dim=-1)


class TokenRanker:
    """Ranks items by log P of their tokens, kept to the trie of existing IDs while decoding.

    Args:
        model: A trained model; put in eval mode.
        trie: Of the catalogue.
        beam_width: Prefixes kept at each level, at least twice as many as items are asked for.
        allowed: bool ``[N]``, items that may be listed; None for all.

    Raises:
        DataError: No item is allowed.
    """

    batch_users = 32

    def __init__(
        self, model: TokenNetwork, trie: Trie, *, beam_width: int, allowed: Tensor | None = None
    ) -> None:
        require_items(allowed)
        self.model = model.eval()
        self.beam_width = beam_width
        self.trie = TrieTensors(trie).to(self.device)
        self.allowed = None if allowed is None else allowed.to(self.device)

    @property
    def history_length(self) -> int:
        """Items of a history that are read."""
        return self.model.history_length

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.tables.item_tokens.device

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories."""
        context = self.model.read(histories)
        return beam_search(
            self.trie,
            TokenWalk(self.model, self.trie, context, num_users=len(histories.items)),
            beam_width=search_width(self.beam_width, top_k, self.trie.num_items),
            top_k=top_k,
            leaf_filter=LeafFilter.build(self.trie, excluded=excluded, allowed=self.allowed),
        )


class TokenModel(NetworkModel[TokenNetwork]):
    """A model over code tokens as a plug."""

    needs = ("tokenize",)
    searches = True
    scores_all = False
    valid_beam_width = "valid_beam_width"

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> TokenRanker:
        """See `Model.ranker`.

        Raises:
            ConfigError: Every item is to be scored, which such a model cannot do.
        """
        if beam_width is None:
            raise ConfigError(
                "This model finds items by beam search only: set a beam width, for example 50."
            )
        return TokenRanker(self.network, self._trie, beam_width=beam_width, allowed=allowed)

    @torch.inference_mode()
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Sums of the embeddings of items' codes, ``[N, D]``."""
        tables = self.network.tables
        sums = F.embedding_bag(tables.item_tokens, tables.embedding.weight, mode="sum")
        return np.asarray(sums.float().cpu().numpy(), dtype=np.float32)

    @cached_property
    def _trie(self) -> Trie:
        return build_trie(self.items.require_ids().codes)


def codes_of(items: CatalogueInputs) -> tuple[Tensor, tuple[int, ...]]:
    """Codes int ``[N, L]`` of a catalogue, and the sizes of its codebooks."""
    table = items.require_ids()
    return torch.from_numpy(np.array(table.codes)), table.codebook_sizes


def beam_mask(width: int, length: int, device: torch.device) -> Tensor:
    """Bool ``[1, W * l, W * l]``: each beam sees its own tokens, causally."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask: Tensor = torch.block_diag(*[causal] * width).unsqueeze(0)
    return mask
