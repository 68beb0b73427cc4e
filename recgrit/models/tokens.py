"""Shared parts of the models over code tokens, TIGER and the decoder: layers, tables and decoding.

Such a model reads and writes the codes of items as tokens. At each level it computes a softmax over
all codes, so it gives probability to IDs that no item has. Only the decoding is restricted to the
trie of existing IDs, with the same beam search as the trie model (`recgrit.retrieval.decoding`).
For speed, the beams of a user are further positions of one sequence under an attention mask, and
the user's encoded history is not copied for each beam.

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

# Largest number of beam tokens that are decoded as one sequence under a mask. Searches of usual
# width have fewer.
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
        """Attend from the positions of one sequence to the positions of another.

        Args:
            x: Vectors of the query positions, ``[B, Q, D]``.
            memory: Vectors that are attended to, ``[B, S, D]``.
            mask: bool ``[B, Q, S]``, true where a query position may attend. Its first two
                dimensions may be 1.

        Returns:
            One vector per query position, ``[B, Q, D]``.
        """
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
    """A transformer layer: self-attention, optional cross-attention, and a feed-forward network.

    The cross-attention reads the output of an encoder. It is there if ``crosses`` is true.
    """

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
        """Compute the outputs of the layer, ``[B, Q, D]``.

        Args:
            x: Inputs of the layer, ``[B, Q, D]``.
            mask: Mask of the self-attention, bool ``[B, Q, S + Q]``, or ``[B, Q, Q]`` without
                ``before``.
            before: Inputs of this layer at S earlier positions, ``[B, S, D]``. The new positions
                attend to them, but their outputs are not computed again. None for no such
                positions.
            memory: Output of the encoder, for a layer with cross-attention. None for the others.
            memory_mask: Mask of the cross-attention. None without ``memory``.
        """
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
    """Embeddings of the codes of all levels, which serve as inputs and also score the codes.

    A token is the row of a code in the embedding table. The table holds the codes of the first
    level, then those of the second, and so on.

    Args:
        codes: Semantic IDs of all items, int ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        dim: Number of dimensions of an embedding, D.
    """

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
        """Number of levels, L."""
        return len(self.sizes)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input vectors of tokens, ``[..., D]``, scaled to about unit variance."""
        vectors: Tensor = self.scale * self.embedding(tokens)
        return vectors

    def score(self, states: Tensor, level: int) -> Tensor:
        """Return the scores of all codes of a level, ``[..., K]``.

        Args:
            states: States that the codes are scored by, ``[..., D]``.
            level: Level of the codes, counted from 0.
        """
        first = self.offsets[level]
        return states @ self.embedding.weight[first : first + self.sizes[level]].T

    def loss(self, states: Tensor, wanted: Tensor, weights: Tensor | None) -> TrainingLoss:
        """Compute the mean of -log P(target item) over the samples, and the accuracy per level.

        Args:
            states: State before each code of the target, ``[M, L, D]``.
            wanted: Target items by ``item_idx``, int64 ``[M]``.
            weights: Weight of each sample, float32 ``[M]``. None weighs all samples equally.
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
    """The base class of networks that predict the codes of the next item one after another.

    Args:
        tables: Embeddings of the codes.
        history_length: Number of items of a history that the network reads at most.
    """

    def __init__(self, tables: TokenTables, *, history_length: int) -> None:
        super().__init__()
        self.tables = tables
        self.history_length = history_length

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """Encode histories once, and return the tensors that `next_states` reads."""
        raise NotImplementedError

    def next_states(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """Return the state of each beam after the history and the beam's tokens, ``[B, W, D]``.

        Args:
            context: Tensors that `read` returned.
            chosen: The l tokens that each beam has chosen so far, int64 ``[B, W, l]``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TokenWalk:
    """A walk of a token network down the trie, which the beam search asks for log-probabilities.

    The state of a beam is the tokens that it has chosen so far, ``[B, W, l]`` (see
    `recgrit.retrieval.decoding.Walk`).

    Args:
        model: A trained network in eval mode.
        trie: Trie of the catalogue's semantic IDs.
        context: Encoded histories, as ``model.read`` returned them.
        num_users: Number of users in the batch, B.
    """

    model: TokenNetwork
    trie: TrieTensors
    context: tuple[Tensor, ...]
    num_users: int

    def expand(self, chosen: Tensor | None, frontier: Frontier, level: int) -> Tensor:
        """Return the log-probabilities of the children of the beams' nodes, ``[B, W, C]``.

        The softmax is over all codes of the level. Entries of the table without a child are -inf.

        Args:
            chosen: Tokens that the beams have chosen so far, ``[B, W, l]``. None at the root.
            frontier: Nodes of the beams and their children.
            level: Level of the children, counted from 0.
        """
        if chosen is None:
            chosen = frontier.firsts.new_zeros(*frontier.firsts.shape, 0, dtype=torch.long)
        # The mask of a sequence grows with the square of its tokens, although beams do not attend
        # to each other. A wide search is therefore split into several sequences of beams.
        most = max(1, MASKED_TOKENS // (chosen.shape[2] + 1))
        parts = [self.model.next_states(self.context, part) for part in chosen.split(most, dim=1)]
        states = torch.cat(parts, dim=1)
        log_probs = self.model.tables.score(states, level).float().log_softmax(dim=-1)  # [B, W, K]
        codes = self.trie.node_codes[frontier.children].long()
        return log_probs.gather(-1, codes).masked_fill(~frontier.present, NEVER)

    def extend(self, chosen: Tensor | None, nodes: Tensor, level: int) -> Tensor:
        """Append the token of the next node to each beam's tokens, ``[B, W, l + 1]``.

        Args:
            chosen: Tokens that the beams have chosen so far, ``[B, W, l]``. None at the root.
            nodes: Node that each beam chooses next, ``[B, W]``.
            level: Level of these nodes, counted from 0.
        """
        tables = self.model.tables
        tokens = (tables.offsets[level] + self.trie.node_codes[nodes]).long().unsqueeze(-1)
        # An unused beam may have a token beyond the table. It is clamped, and never listed.
        tokens = tokens.clamp_max(len(tables.embedding.weight) - 1)
        return tokens if chosen is None else torch.cat([chosen, tokens], dim=-1)


class TokenRanker:
    """A ranker that finds items by beam search over the log-probabilities of their tokens.

    The search is restricted to the trie, so every prefix that it keeps belongs to an existing item.

    Args:
        model: A trained network. It is put into eval mode.
        trie: Trie of the catalogue's semantic IDs.
        beam_width: Number of prefixes that the search keeps at each level. The search keeps at
            least two prefixes per listed item, even if ``beam_width`` is smaller.
        allowed: bool ``[N]``, true for items that may be listed. None allows all items.

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
        """Largest number of items of a history that the network reads, the most recent ones."""
        return self.model.history_length

    @property
    def device(self) -> torch.device:
        """Device of the network, on which the histories have to be."""
        return self.model.tables.item_tokens.device

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """Return the ``top_k`` items that the beam search finds for each history.

        The arguments are those of `recgrit.ranking.Ranker.rank`.
        """
        context = self.model.read(histories)
        return beam_search(
            self.trie,
            TokenWalk(self.model, self.trie, context, num_users=len(histories.items)),
            beam_width=search_width(self.beam_width, top_k, self.trie.num_items),
            top_k=top_k,
            leaf_filter=LeafFilter.build(self.trie, excluded=excluded, allowed=self.allowed),
        )


class TokenModel(NetworkModel[TokenNetwork]):
    """The base class of models that rank with a `TokenNetwork`, such as TIGER."""

    needs = ("tokenize",)
    searches = True
    scores_all = False
    valid_beam_width = "valid_beam_width"

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> TokenRanker:
        """Return a ranker that finds items by beam search; see `Model.ranker`.

        Raises:
            ConfigError: ``beam_width`` is None. This model cannot score every item.
        """
        if beam_width is None:
            raise ConfigError(
                "This model finds items by beam search only: set a beam width, for example 50."
            )
        return TokenRanker(self.network, self._trie, beam_width=beam_width, allowed=allowed)

    @torch.inference_mode()
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Return for each item the sum of the embeddings of its codes, float32 ``[N, D]``."""
        tables = self.network.tables
        sums = F.embedding_bag(tables.item_tokens, tables.embedding.weight, mode="sum")
        return np.asarray(sums.float().cpu().numpy(), dtype=np.float32)

    @cached_property
    def _trie(self) -> Trie:
        return build_trie(self.items.require_ids().codes)


def codes_of(items: CatalogueInputs) -> tuple[Tensor, tuple[int, ...]]:
    """Return the codes of a catalogue, int ``[N, L]``, and the number of codes of each level."""
    table = items.require_ids()
    return torch.from_numpy(np.array(table.codes)), table.codebook_sizes


def beam_mask(width: int, length: int, device: torch.device) -> Tensor:
    """Return the attention mask of beams in one sequence, bool ``[1, W * l, W * l]``.

    The sequence has all tokens of the first beam in order, then those of the second beam, and so
    on. True at ``[0, i, j]`` means that token i may attend to token j: j is i itself or an earlier
    token of the same beam.

    Args:
        width: Number of beams, W.
        length: Number of tokens of each beam, l.
        device: Device of the mask.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask: Tensor = torch.block_diag(*[causal] * width).unsqueeze(0)
    return mask
