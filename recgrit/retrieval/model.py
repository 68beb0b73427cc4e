"""The trie-softmax retriever: P(item | history) as a walk down the trie of semantic IDs.

Published semantic-ID retrievers take a softmax over all codes at every level and keep to existing
IDs only while decoding. Here each step is normalised over the **children of the current node**, so
that no probability goes to IDs that do not exist, the product over levels is a proper probability
over items, and later levels, with few children, cost almost nothing.

A *node vector* is the embedding of the level's code (shared by all nodes with that code: it
generalises) plus an embedding of the node itself (it memorises). The first node on a path that
leads to one item alone also has the embeddings of all codes that are left of that item's ID, as an
edge of a compressed trie has: nothing is left to choose below it, so what the ID says of the item
counts here. The vector of an item in a history is the sum of its path's node vectors. Below a node
of one item nothing is chosen, so that the embeddings there tell histories what no choice needs.
Nodes never trained on, and a random part of the others in training, have one learned fallback per
level in place of their own embedding: so the fallback is trained, and new items can be scored. A
disambiguation level has no code embedding, for its codes mean nothing.

Long IDs need no long walk: behind the first ``tree_levels`` codes the trie may end in one choice
among the items that share them, each with the embeddings of all its further codes. Those describe
an item more and more finely, and their number does not grow with the catalogue.

A child all of whose items the history already holds gets a learned score per level on top. So the
model learns from the data whether people come back for the same item. Vectors alone express this
badly, for training makes them alike for items that follow one another. Nor do vectors remember
which rare items stand near one another in histories, or share a brand, so
`recgrit.retrieval.neighbours` adds to the scores when recommending.

Shapes: B users, T history items, M targets, L levels of the trie, V nodes, N items, C children, D
model dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.data.attributes import Attributes
from recgrit.ranking import Batch, Histories, TrainingLoss
from recgrit.retrieval.attributes import AttributeVectors, UserToken
from recgrit.retrieval.config import NeighbourKind
from recgrit.retrieval.dropout import Dropout
from recgrit.retrieval.leaves import LeafWeights, NodeSets
from recgrit.retrieval.neighbours import ItemNeighbours
from recgrit.retrieval.node_vectors import (
    NodeTable,
    NodeVectors,
    Size,
    choose_own_nodes,
    find_lone_items,
    look_up,
)
from recgrit.retrieval.ragged_products import ragged_products
from recgrit.retrieval.step_plan import LevelPlan, StepPlan, StepPlanner
from recgrit.retrieval.transformer import HistoryEncoder
from recgrit.retrieval.trie_tensors import TrieTensors
from recgrit.semantic_ids.trie import build_trie, cut_ids


class CodeDecoder(nn.Module):
    """The query for the next code, from a state and the vectors of the nodes chosen so far."""

    def __init__(self, dim: int, *, num_levels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, 2 * dim),
                nn.GELU(),
                Dropout(dropout),
                nn.Linear(2 * dim, dim),
            )
            for _ in range(num_levels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_levels))

    def forward(self, state: Tensor, chosen: Tensor | None, level: int) -> Tensor:
        """``[..., D]`` from states ``[..., D]`` and sums of node vectors ``[..., D]``."""
        x = state if chosen is None else state + chosen
        query: Tensor = self.norms[level](x + self.layers[level](x))
        return query


class TrieRetriever(nn.Module):
    """History encoder, node vectors and code decoder over one ID table.

    Args:
        codes: int32 ``[N, -1]``, the IDs of the whole catalogue.
        codebook_sizes: Of each of their levels.
        disambiguation_level: The level that only tells items apart, if there is one.
        tree_levels: Codes chosen one after another, before one choice among the items that share
            them; None for all.
        train_items: bool ``[N]``, the items that stand in training histories: only they are
            candidates in training, lest a cold item become a permanent negative.
        known_items: bool ``[N]``, the items the catalogue had in training; None for all. Those
            added since leave the vectors of all nodes that were there as they are.
        model_dim: D.
        num_layers: Layers of the history encoder.
        num_heads: Attention heads.
        history_length: Longest history, in items.
        dropout: Rate in encoder and decoder.
        node_dropout: Fraction of node embeddings that the fallback replaces in a training step.
        label_smoothing: Fraction of the target spread evenly over the siblings, at each level.
        seen_scores: Learn a score for children of which the history holds every item.
        neighbours: Kinds of neighbours of the history's items that count beside the model.
        size: Which nodes have an embedding of their own: all that training chooses (``catalogue``),
            those of them above several items (``prefixes``), or none (``constant``).
        node_buckets: With ``constant``, rows of a table of embeddings that are shared by nodes that
            are no siblings; 0 for none.
        trie_softmax: Normalise over the children of a node; else over all codes of the level, as
            published retrievers do, those that lead nowhere included.
        attributes: Of the items, whose embeddings are added to the vectors that the encoder reads;
            None for none.
        user_attributes: Of users, and behind them of an unknown one, of which the encoder reads a
            token before the history; None for none.

    Raises:
        ConfigError: ``node_buckets`` is less than a codebook.
    """

    def __init__(
        self,
        codes: npt.NDArray[np.int32],
        codebook_sizes: tuple[int, ...],
        *,
        disambiguation_level: int | None = None,
        tree_levels: int | None = None,
        train_items: Tensor,
        known_items: Tensor | None = None,
        model_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        history_length: int = 50,
        dropout: float = 0.5,
        node_dropout: float = 0.05,
        label_smoothing: float = 0.0,
        seen_scores: bool = True,
        neighbours: Sequence[NeighbourKind] = (),
        size: Size = "catalogue",
        node_buckets: int = 0,
        trie_softmax: bool = True,
        attributes: Attributes | None = None,
        user_attributes: Attributes | None = None,
    ) -> None:
        super().__init__()
        tree_codes = cut_ids(codes, tree_levels)
        trie = build_trie(tree_codes)
        known_items = torch.ones_like(train_items) if known_items is None else known_items
        self.trie_softmax = trie_softmax
        self.trie = TrieTensors(trie)
        # Scores ask for small node vectors, states of unit variance for larger ones beside them.
        self.input_scale: float = model_dim**0.5
        self.label_smoothing = label_smoothing
        self.nodes = NodeVectors(
            trie,
            codes,
            codebook_sizes,
            disambiguation_level=disambiguation_level,
            num_tree_levels=trie.num_levels if tree_codes is codes else trie.num_levels - 1,
            own_nodes=choose_own_nodes(
                trie, train_items, known_items, "catalogue" if node_buckets else size
            ),
            lone_items=find_lone_items(trie, known_items),
            dim=model_dim,
            node_dropout=node_dropout,
            num_buckets=node_buckets if size == "constant" else None,
        )
        self.attributes = None if attributes is None else AttributeVectors(attributes, model_dim)
        self.user_token = None
        if user_attributes is not None:
            self.user_token = UserToken(user_attributes, model_dim, dropout=node_dropout)
        self.encoder = HistoryEncoder(
            model_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            history_length=history_length,
            dropout=dropout,
        )
        self.decoder = CodeDecoder(model_dim, num_levels=trie.num_levels, dropout=dropout)
        self.seen_scores = nn.Parameter(torch.zeros(trie.num_levels)) if seen_scores else None
        self.neighbours = ItemNeighbours(len(trie.paths), neighbours) if neighbours else None
        self.planner = StepPlanner(
            trie,
            trie.restrict(train_items.numpy()),
            # Where all codes of a level compete, an only child has to win as well.
            fewest=2 if trie_softmax else 1,
            find_seen=seen_scores,
            keep_histories=attributes is not None,
        )

    @property
    def num_items(self) -> int:
        """N."""
        return self.trie.num_items

    def item_vectors(self, items: Tensor, node_vectors: NodeTable) -> Tensor:
        """Input vectors ``[..., D]`` of items ``[...]``: sums over their paths and attributes."""
        vectors = look_up(node_vectors, self.trie.paths[items]).sum(dim=-2)
        if self.attributes is not None:
            vectors = vectors + self.attributes(items)
        return self.input_scale * vectors

    def encode(self, histories: Tensor, node_vectors: NodeTable) -> Tensor:
        """States ``[B, T, D]`` of histories ``[B, T]``; padding holds any item, at the end."""
        vectors = self.item_vectors(histories, node_vectors)
        states: Tensor = self.encoder(vectors, self.read_users(None, len(vectors)))
        return states

    def read_users(self, users: Tensor | None, num_users: int) -> Tensor | None:
        """What stands before the histories of users int64 ``[B]``, ``[B, D]``; None for nothing.

        Args:
            users: Rows of the users' table, -1 for unknown; None if all are.
            num_users: B.
        """
        if self.user_token is None:
            return None
        token: Tensor = self.input_scale * self.user_token(users, num_users)
        return token

    def find_seen(self, items: Tensor, present: Tensor) -> list[NodeSets]:
        """Nodes all of whose items are in histories ``[R, E]``, for each level.

        Args:
            items: int64 ``[R, E]``.
            present: bool ``[R, E]``, which of them are meant.
        """
        return [] if self.seen_scores is None else self.trie.find_covered(items, present)

    def seen_score(self, level: int) -> Tensor:
        """What is added to the score of a node of a level that a history holds all of."""
        assert self.seen_scores is not None
        return self.input_scale * self.seen_scores[level]

    def weigh_neighbours(self, histories: Histories) -> LeafWeights | None:
        """What the neighbours of a history's items add to the probability of each leaf."""
        if self.neighbours is None:
            return None
        seen = self.trie.find_leaves(histories.items, histories.present)
        return self.neighbours.weigh(
            histories, self.trie.item_leaves, seen, fixed_shapes=self.trie.fixed_shapes
        )

    def plan(self, batch: Batch) -> StepPlan:
        """What `loss` needs of a batch."""
        return self.planner.plan(batch)

    def loss(self, plan: StepPlan) -> TrainingLoss:
        """Negative log-likelihood of the next item at every supervised position."""
        num_items = plan.shape[0] * plan.shape[1]
        vectors = self.nodes.of(plan.asked, self.nodes.draw_dropped())  # [U, D]
        sums = self.input_scale * F.embedding_bag(plan.bags, vectors, plan.bag_starts, mode="sum")
        read = sums[:num_items].view(*plan.shape, -1)
        if self.attributes is not None:
            read = read + self.input_scale * self.attributes(plan.histories)
        states = self.encoder(read, self.read_users(plan.people, len(read)))
        states = states.flatten(0, 1)[plan.positions]  # [M, D]
        chosen = (None, *sums[num_items:].split(plan.num_targets))
        _, *by_level = vectors.split(plan.level_sizes)
        total = states.new_zeros((), dtype=torch.float32)
        accuracy = []
        for level, (choice, nodes) in enumerate(zip(plan.levels, by_level, strict=True)):
            # An only child has probability 1: no need to score it.
            num_right = torch.full_like(total, plan.num_targets - len(choice.open))
            if len(choice.open):
                before = chosen[level]
                queries = self.decoder(
                    states[choice.open], None if before is None else before[choice.open], level
                )
                scores = self._score_choice(queries, nodes, choice, level)
                if not self.trie_softmax:
                    firsts = self.trie.child_starts[choice.parents]
                    sizes = self.trie.child_starts[choice.parents + 1] - firsts
                    others = self.score_other_codes(queries, firsts, sizes, level)
                    scores = torch.cat([scores, others], dim=-1)
                weights = None if plan.weights is None else plan.weights[choice.open]
                total = total + self._negative_log_likelihood(scores, choice.columns, weights)
                num_right += (scores.detach().argmax(dim=-1) == choice.columns).sum()
            accuracy.append(num_right / max(1, plan.num_targets))
        return TrainingLoss(total / max(1, plan.num_targets), torch.stack(accuracy))

    def _score_choice(
        self, queries: Tensor, vectors: Tensor, choice: LevelPlan, level: int
    ) -> Tensor:
        """Scores of the candidates of each open target, float32 ``[O, width]``; -inf for none.

        Args:
            queries: ``[O, D]``.
            vectors: ``[U', D]``, of the nodes of this level that the step asks for.
            choice: Which of them compete.
            level: Whose learned score nodes get that the history holds all of.
        """
        if level == 0:  # One node for all, the root: a matrix product.
            scores = (queries @ F.embedding(choice.nodes, vectors).T).float()
        else:
            products = ragged_products(queries, vectors, choice.rows, choice.nodes, choice.by_node)
            table = products.new_full((len(choice.open) * choice.width,), float("-inf"))
            scores = table.scatter(0, choice.places, products).view(-1, choice.width)
        if self.seen_scores is None:
            return scores
        added = self.seen_score(level).expand(choice.seen.shape)
        return scores.flatten().index_add(0, choice.seen, added).view_as(scores)

    def score_other_codes(
        self, queries: Tensor, firsts: Tensor, counts: Tensor, level: int
    ) -> Tensor:
        """Scores of all codes of the level, ``[M, K]``; -inf for those that lead to a child.

        ``[M, 0]`` at a level whose nodes are items.

        Args:
            queries: ``[M, D]``.
            firsts: ``[M]``, the first child of each query's node.
            counts: ``[M]``, how many children it has.
            level: Level of the codes that are scored.
        """
        others = (queries @ self.nodes.vectors_of_codes(level).T).float()
        if not others.shape[1]:
            return others
        columns = torch.arange(self.trie.most_children[level], device=firsts.device)
        present = columns < counts.unsqueeze(-1)
        children = (firsts.unsqueeze(-1) + columns).masked_fill_(~present, 0)
        # One column more, for what is no child.
        num_codes = others.shape[1]
        codes = torch.where(present, self.trie.node_codes[children], num_codes).long()
        leads_on = others.new_zeros(len(others), num_codes + 1, dtype=torch.bool)
        leads_on.scatter_(1, codes, True)
        return others.masked_fill(leads_on[:, :num_codes], float("-inf"))

    def _negative_log_likelihood(
        self, scores: Tensor, columns: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Sum of -log P(right child) over rows of scores ``[M, C]``, smoothed over siblings.

        Each times its weight ``[M]``, where there are weights.
        """
        log_probs = scores.log_softmax(dim=-1)
        wanted = log_probs.gather(-1, columns.unsqueeze(-1)).squeeze(-1)
        if not self.label_smoothing:
            return -(wanted if weights is None else weights * wanted).sum()
        absent = log_probs.isinf()
        spread = log_probs.masked_fill(absent, 0.0).sum(dim=-1) / (~absent).sum(dim=-1)
        smoothed = torch.lerp(wanted, spread, self.label_smoothing)
        return -(smoothed if weights is None else weights * smoothed).sum()

    def num_parameters(self) -> dict[str, int]:
        """Trainable parameters by part."""
        nodes = self.nodes
        dim = nodes.node_embedding.embedding_dim
        of_nodes = {"embeddings of node buckets": nodes.node_embedding.weight.numel()}
        if nodes.num_buckets is None:
            num_items = (self.trie.leaf_ends - self.trie.leaf_starts)[nodes.own_nodes]
            of_nodes = {
                "embeddings of nodes of several items": int((num_items > 1).sum()) * dim,
                "embeddings of nodes of one item": int((num_items == 1).sum()) * dim,
            }
        parts = {
            "code embeddings": nodes.code_embedding.weight.numel(),
            **of_nodes,
            "fallbacks": nodes.fallback.weight.numel(),
            "history encoder": sum(p.numel() for p in self.encoder.parameters()),
            "code decoder": sum(p.numel() for p in self.decoder.parameters()),
            "seen scores": 0 if self.seen_scores is None else self.seen_scores.numel(),
        }
        if self.attributes is not None:
            parts["item attributes"] = self.attributes.table.weight.numel()
        if self.user_token is not None:
            parts["user token"] = sum(p.numel() for p in self.user_token.parameters())
        return parts
