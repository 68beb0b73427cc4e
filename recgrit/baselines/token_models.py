"""Semantic-ID retrievers as published: a transformer over tokens, a softmax over all codes.

`EncoderDecoder` is TIGER (Rajput et al., arXiv 2305.05065): the codes of the history's items are
the tokens of an encoder, a decoder emits the next item's codes one by one, and each training sample
is one target with the history before it. `DecoderOnly` reads and emits one stream of tokens and
learns from all its positions at once. Both put probability on codes that no item has, and are kept
to the trie only while decoding; here that is one beam search for both.

The beams of a user are further positions of one sequence under a mask, not copies of the user's
memory, which makes decoding as fast as such a model allows.

Shapes: B rows, T history items, S history tokens (T times L), L levels, W beams, D dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.data.recommendations import NO_ITEM
from recgrit.retrieval.decoding import LeafFilter
from recgrit.retrieval.frontier import Frontier
from recgrit.retrieval.leaves import LeafSets
from recgrit.retrieval.losses import TrainingLoss
from recgrit.retrieval.ranking import NEVER, Histories, Ranked
from recgrit.semantic_ids.trie import Trie


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
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim),
        )
        self.dropout = nn.Dropout(dropout)

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

    def loss(self, states: Tensor, wanted: Tensor) -> TrainingLoss:
        """Of states ``[M, L, D]`` and the items that follow ``[M]``: the mean of -log P(item)."""
        tokens = self.item_tokens[wanted]
        total, accuracy = states.new_zeros((), dtype=torch.float32), []
        for level, first in enumerate(self.offsets):
            scores = self.score(states[:, level], level).float()
            total = total + F.cross_entropy(scores, tokens[:, level] - first)
            right = scores.detach().argmax(dim=-1) == tokens[:, level] - first
            accuracy.append(right.float().mean())
        return TrainingLoss(total, torch.stack(accuracy))


class EncoderDecoder(nn.Module):
    """TIGER: encoder over the history's tokens, decoder over the next item's.

    Args:
        codes: int ``[N, L]``.
        codebook_sizes: Of each level.
        model_dim: D.
        num_layers: Of the encoder, and of the decoder.
        num_heads: Attention heads.
        head_dim: Of each head.
        hidden_dim: Of the feed-forward nets.
        history_length: Longest history, in items.
        dropout: Rate everywhere.
    """

    def __init__(
        self,
        codes: Tensor,
        codebook_sizes: tuple[int, ...],
        *,
        model_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 6,
        head_dim: int = 64,
        hidden_dim: int = 1024,
        history_length: int = 20,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.tables = TokenTables(codes, codebook_sizes, model_dim)
        num_levels = self.tables.num_levels
        self.positions = nn.Parameter(0.02 * torch.randn(history_length * num_levels, model_dim))
        self.levels = nn.Parameter(0.02 * torch.randn(num_levels, model_dim))
        settings = {"num_heads": num_heads, "head_dim": head_dim, "hidden_dim": hidden_dim}
        self.encoder, self.decoder = (
            nn.ModuleList(
                TokenLayer(model_dim, dropout=dropout, crosses=crosses, **settings)
                for _ in range(num_layers)
            )
            for crosses in (False, True)
        )
        self.memory_norm = nn.LayerNorm(model_dim)
        self.norm = nn.LayerNorm(model_dim)
        self.dropout = nn.Dropout(dropout)

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """Memory ``[B, S, D]`` and which of it is no padding ``[B, 1, S]``."""
        tokens = self.tables.item_tokens[histories.items].flatten(1)
        mask = histories.present.repeat_interleave(self.tables.num_levels, dim=1).unsqueeze(1)
        x = self.dropout(self.tables.embed(tokens) + self.positions[: tokens.shape[1]])
        for layer in self.encoder:
            x = layer(x, mask)
        return self.memory_norm(x), mask

    def _decode(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """States ``[B, W, l + 1, D]`` after nothing, one token and so on of ``[B, W, l]``."""
        memory, memory_mask = context
        width, length = chosen.shape[1:]
        x = F.pad(self.tables.embed(chosen), (0, 0, 1, 0)) + self.levels[: length + 1]
        x = self.dropout(x).flatten(1, 2)
        mask = _beam_mask(width, length + 1, x.device)
        for layer in self.decoder:
            x = layer(x, mask, memory=memory, memory_mask=memory_mask)
        states: Tensor = self.norm(x).unflatten(1, (width, length + 1))
        return states

    def next_states(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """The state after all tokens of each beam."""
        return self._decode(context, chosen)[:, :, -1]

    def loss(self, histories: Tensor, targets: Tensor, supervised: Tensor) -> TrainingLoss:
        """One sample per supervised position: its target, and the items up to it as history."""
        users, ends = supervised.nonzero(as_tuple=True)
        lengths = (ends + 1).clamp_max(self.history_length)
        places = torch.arange(int(lengths.max()), device=ends.device)
        places = (ends + 1 - lengths).unsqueeze(-1) + places
        items = histories[users.unsqueeze(-1), places.clamp_max(histories.shape[1] - 1)]
        wanted = targets[supervised]
        context = self.read(Histories(items, lengths))
        chosen = self.tables.item_tokens[wanted][:, None, :-1]
        return self.tables.loss(self._decode(context, chosen)[:, 0], wanted)


class DecoderOnly(nn.Module):
    """One causal stream of tokens, the codes of item after item.

    Args:
        codes: int ``[N, L]``.
        codebook_sizes: Of each level.
        model_dim: D.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        history_length: Longest history, in items.
        dropout: Rate everywhere.
    """

    def __init__(
        self,
        codes: Tensor,
        codebook_sizes: tuple[int, ...],
        *,
        model_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        history_length: int = 50,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.tables = TokenTables(codes, codebook_sizes, model_dim)
        # One item more: the one that is being written.
        self.positions = nn.Parameter(0.02 * torch.randn(history_length + 1, model_dim))
        self.levels = nn.Parameter(0.02 * torch.randn(self.tables.num_levels, model_dim))
        self.layers = nn.ModuleList(
            TokenLayer(
                model_dim,
                num_heads=num_heads,
                head_dim=model_dim // num_heads,
                hidden_dim=4 * model_dim,
                dropout=dropout,
                crosses=False,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(model_dim)
        self.dropout = nn.Dropout(dropout)

    def _embed(self, items: Tensor) -> Tensor:
        """Tokens of items ``[B, T]`` as inputs ``[B, S, D]``."""
        x = self.tables.embed(self.tables.item_tokens[items]) + self.levels
        inputs: Tensor = self.dropout(x + self.positions[: items.shape[1], None]).flatten(1, 2)
        return inputs

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """Inputs of every layer ``[B, S, D]``, last states, and which tokens are no padding."""
        x = self._embed(histories.items)
        inputs = []
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            inputs.append(x)
            x = layer(x, causal.unsqueeze(0))
        ends = histories.lengths * self.tables.num_levels - 1
        last = self.norm(x[torch.arange(len(x), device=x.device), ends])
        present = histories.present.repeat_interleave(self.tables.num_levels, dim=1)
        return (last, present, histories.lengths, *inputs)

    def next_states(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """The state after all tokens of each beam."""
        last, present, lengths, *inputs = context
        num_users, width, length = chosen.shape
        if length == 0:
            return last.unsqueeze(1).expand(-1, width, -1)
        x = (
            self.tables.embed(chosen)
            + self.levels[:length]
            + self.positions[lengths][:, None, None]
        )
        x = x.flatten(1, 2)
        own = _beam_mask(width, length, x.device).expand(num_users, -1, -1)
        mask = torch.cat([present.unsqueeze(1).expand(-1, own.shape[1], -1), own], dim=-1)
        for layer, before in zip(self.layers, inputs, strict=True):
            x = layer(x, mask, before=before)
        states: Tensor = self.norm(x).unflatten(1, (width, length))[:, :, -1]
        return states

    def loss(self, histories: Tensor, targets: Tensor, supervised: Tensor) -> TrainingLoss:
        """All tokens that follow, of the supervised positions."""
        num_levels = self.tables.num_levels
        # The stream holds the last target too: its first codes are read to tell the later ones.
        items = torch.cat([histories, targets[:, -1:]], dim=1)
        # Where a history ends early, what follows its end is its target, not padding.
        items[:, 1:] = torch.where(supervised, targets, items[:, 1:])
        x = self._embed(items)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            x = layer(x, causal.unsqueeze(0))
        # The state before each token of item t + 1: shifted by one token.
        states = self.norm(x)[:, num_levels - 1 : -1].unflatten(1, (-1, num_levels))
        return self.tables.loss(states[supervised], targets[supervised])


class TokenRanker:
    """Ranks items by log P of their tokens, kept to the trie of existing IDs while decoding.

    Args:
        model: A trained model; put in eval mode.
        trie: Of the catalogue.
        beam_width: Prefixes kept at each level.
    """

    batch_users = 32

    def __init__(self, model: EncoderDecoder | DecoderOnly, trie: Trie, *, beam_width: int) -> None:
        self.model = model.eval()
        self.beam_width = beam_width
        device = self.device
        self.child_starts = torch.from_numpy(trie.child_starts).to(device)
        self.node_codes = torch.from_numpy(trie.node_codes).to(device)
        self.leaf_starts = torch.from_numpy(trie.leaf_starts).to(device)
        self.leaf_ends = torch.from_numpy(trie.leaf_ends).to(device)
        self.leaf_items = torch.from_numpy(trie.leaf_items).to(device)
        self.item_leaves = torch.from_numpy(trie.paths[:, -1]).to(device) - trie.first_leaf
        self.first_leaf = trie.first_leaf

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
        tables, context = self.model.tables, self.model.read(histories)
        num_users = len(histories.items)
        leaf_filter = self._filter(excluded)
        nodes = torch.zeros(num_users, 1, dtype=torch.long, device=self.device)
        chosen = nodes.new_zeros(num_users, 1, 0)
        scores = torch.zeros(num_users, 1, device=self.device)
        for level, first in enumerate(tables.offsets):
            states = self.model.next_states(context, chosen)
            log_probs = tables.score(states, level).float().log_softmax(dim=-1)  # [B, W, K]
            frontier = Frontier.build(self.child_starts, nodes)
            below = frontier.children
            log_probs = log_probs.gather(-1, self.node_codes[below].long())
            candidates = (scores.unsqueeze(-1) + log_probs).masked_fill(~frontier.present, NEVER)
            candidates, below = candidates.flatten(1), below.flatten(1)
            if leaf_filter is not None:
                passes = leaf_filter.passes(self.leaf_starts[below], self.leaf_ends[below])
                candidates = candidates.masked_fill(~passes, NEVER)
            best = candidates.topk(min(self.beam_width, candidates.shape[1]), dim=-1)
            scores, nodes = best.values, below.gather(1, best.indices).long()
            # Where fewer prefixes are left than beams, the spare ones end at a leaf: no children.
            nodes = nodes.masked_fill(scores == NEVER, len(self.leaf_ends) - 1)
            prefix = (best.indices // frontier.width).unsqueeze(-1).expand(-1, -1, level)
            tokens = (first + self.node_codes[nodes]).unsqueeze(-1)
            # A spare beam's token need not exist on this level; it is never listed.
            tokens = tokens.clamp_max(len(tables.embedding.weight) - 1)
            chosen = torch.cat([chosen.gather(1, prefix), tokens], dim=-1)
        items = self.leaf_items[(nodes - self.first_leaf).clamp_min(0)]
        items = items.masked_fill(scores == NEVER, NO_ITEM)
        return Ranked(items[:, :top_k], scores[:, :top_k])

    def _filter(self, excluded: Histories | None) -> LeafFilter | None:
        if excluded is None:
            return None
        leaves = self.item_leaves[excluded.items]
        return LeafFilter(LeafSets.build(leaves, excluded.present, len(self.leaf_items)), None)


def _beam_mask(width: int, length: int, device: torch.device) -> Tensor:
    """Bool ``[1, W * l, W * l]``: each beam sees its own tokens, causally."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask: Tensor = torch.block_diag(*[causal] * width).unsqueeze(0)
    return mask
