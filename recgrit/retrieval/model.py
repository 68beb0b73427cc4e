"""The trie-softmax retriever, which computes P(item | history) as a walk down the trie of IDs.

Published semantic-ID retrievers take a softmax over all codes at every level and restrict codes to
existing IDs during decoding only. Here each step is normalised over the **children of the current
node**. No probability goes to IDs that do not exist, the product over levels is a probability
distribution over items, and later levels are cheap because they have few children.

A *node vector* is the sum of two embeddings. The embedding of the level's code is shared by all
nodes with that code, so it generalises. The embedding of the node itself memorises. If a node is
the first on its path that leads to a single item, its vector also contains the embeddings of all
remaining codes of that item's ID. Below such a node nothing is left to choose, so the remaining
codes influence the score here. The vector of an item in a history is the sum of the node vectors on
the item's path. Node embeddings below a single-item node therefore serve histories only.

Nodes without a trained embedding use one learned fallback embedding per level. In training the
fallback replaces a random share of the other node embeddings, so it is trained and new items can be
scored. A disambiguation level has no code embeddings, because its codes have no meaning.

A long ID does not need a long walk. After the first ``tree_levels`` codes, the trie can end in one
choice among the items that share these codes. Each of these items then has the embeddings of all
its further codes. The number of code embeddings does not grow with the catalogue.

If a history already contains all items below a child, a learned score per level is added to the
child. The model learns with it whether users return to the same item. Node vectors alone express
this badly, because training makes vectors of consecutive items similar. Node vectors also do not
remember which rare items are near each other in histories or share a brand, so
`recgrit.retrieval.neighbours` adds neighbour terms to the scores of recommendations.

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
    """A network that computes the query for the next code from a state and the chosen nodes.

    Args:
        dim: Number of model dimensions D.
        num_levels: Number of levels of the trie. Each level has its own layers.
        dropout: Dropout rate.
    """

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
        """Return the queries of one level.

        Shapes: D model dimensions.

        Args:
            state: States of the history encoder ``[..., D]``.
            chosen: Sums of the vectors of the nodes chosen so far ``[..., D]``. None at the root.
            level: Level whose code is chosen next.

        Returns:
            Queries ``[..., D]``.
        """
        x = state if chosen is None else state + chosen
        query: Tensor = self.norms[level](x + self.layers[level](x))
        return query


class TrieRetriever(nn.Module):
    """The retriever network: history encoder, node vectors and code decoder over one ID table.

    Args:
        codes: IDs of the whole catalogue, int32 ``[N, number of codes]``.
        codebook_sizes: Codebook size of each level of the IDs.
        disambiguation_level: Level whose codes only distinguish items with otherwise equal IDs.
            None if there is no such level.
        tree_levels: Number of codes that are chosen one after another, before one choice among the
            items that share them. None chooses all codes one after another.
        train_items: Items that occur in training histories, bool ``[N]``. Only these items are
            candidates in training, because a cold item would otherwise always be a negative
            example.
        known_items: Items that the catalogue had in training, bool ``[N]``. Items added later do
            not change the vectors of existing nodes. None means all items.
        model_dim: Number of model dimensions D.
        num_layers: Number of layers of the history encoder.
        num_heads: Number of attention heads.
        history_length: Maximum number of history items to read.
        dropout: Dropout rate in encoder and decoder.
        node_dropout: Share of node embeddings that the fallback replaces in a training step.
        label_smoothing: Share of the target's probability that is spread evenly over the children
            of the same node, at each level.
        seen_scores: Whether to learn a score for children whose items are all in the history.
        neighbours: Kinds of neighbours of the history's items that are added to the scores.
        size: Nodes that have their own embedding: all nodes that training chooses (``catalogue``),
            those of them above several items (``prefixes``), or none (``constant``).
        node_buckets: With ``constant``, number of rows of an embedding table that nodes share.
            Children of one node never share a row. 0 means no table.
        trie_softmax: Whether to normalise over the children of a node. False normalises over all
            codes of the level, including codes that lead to no item, as published retrievers do.
        attributes: Item attributes, whose embeddings are added to the vectors that the encoder
            reads. None uses no attributes.
        user_attributes: User attributes, with those of an unknown user in the last row. The encoder
            reads them in a token before the history. None uses no token.

    Raises:
        ConfigError: ``node_buckets`` is smaller than a codebook.
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
        # Scores need small node vectors. The encoder needs larger ones, because its states have
        # unit variance. Its inputs are therefore scaled up.
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
            # If all codes of a level compete, an only child has competitors too.
            fewest=2 if trie_softmax else 1,
            find_seen=seen_scores,
            keep_histories=attributes is not None,
        )

    @property
    def num_items(self) -> int:
        """Number of items N in the catalogue."""
        return self.trie.num_items

    def item_vectors(self, items: Tensor, node_vectors: NodeTable) -> Tensor:
        """Return the encoder's input vectors of items.

        An item's vector is the sum of the node vectors on its path and of its attribute embeddings,
        times the square root of D.

        Shapes: D model dimensions.

        Args:
            items: Items, int64 ``[...]``.
            node_vectors: Vectors of all nodes, or an object that computes them on request.

        Returns:
            Vectors ``[..., D]``.
        """
        vectors = look_up(node_vectors, self.trie.paths[items]).sum(dim=-2)
        if self.attributes is not None:
            vectors = vectors + self.attributes(items)
        return self.input_scale * vectors

    def encode(self, histories: Tensor, node_vectors: NodeTable) -> Tensor:
        """Return the states of histories after each of their items, for unknown users.

        Shapes: B users, T history items, D model dimensions.

        Args:
            histories: Items ``[B, T]``, oldest first. Padding is at the end and may be any item.
            node_vectors: Vectors of all nodes, or an object that computes them on request.

        Returns:
            States ``[B, T, D]``.
        """
        vectors = self.item_vectors(histories, node_vectors)
        states: Tensor = self.encoder(vectors, self.read_users(None, len(vectors)))
        return states

    def read_users(self, users: Tensor | None, num_users: int) -> Tensor | None:
        """Return the user token that the encoder reads before each history, ``[B, D]``.

        The result is None if the model uses no user attributes.

        Shapes: D model dimensions.

        Args:
            users: Row of each user in the user table, int64 ``[B]``, or -1 for an unknown user.
                None means that all users are unknown.
            num_users: Number of users B.
        """
        if self.user_token is None:
            return None
        token: Tensor = self.input_scale * self.user_token(users, num_users)
        return token

    def find_seen(self, items: Tensor, present: Tensor) -> list[NodeSets]:
        """Return for each level the nodes whose items are all in a history.

        The result is empty if the model learns no scores for seen items.

        Shapes: B users, T history items.

        Args:
            items: Items of the histories, int64 ``[B, T]``.
            present: Whether each entry is an item and not padding, bool ``[B, T]``.
        """
        return [] if self.seen_scores is None else self.trie.find_covered(items, present)

    def seen_score(self, level: int) -> Tensor:
        """Return the learned score for nodes of a level whose items are all in the history.

        It is added to the scores of these nodes.
        """
        assert self.seen_scores is not None
        return self.input_scale * self.seen_scores[level]

    def weigh_neighbours(self, histories: Histories) -> LeafWeights | None:
        """Return what the neighbours of a history's items add to the scores of the trie's leaves.

        Each leaf is an item. The result has a mixture weight and an additive bonus per leaf. It is
        None if the model uses no neighbours.
        """
        if self.neighbours is None:
            return None
        seen = self.trie.find_leaves(histories.items, histories.present)
        return self.neighbours.weigh(
            histories, self.trie.item_leaves, seen, fixed_shapes=self.trie.fixed_shapes
        )

    def plan(self, batch: Batch) -> StepPlan:
        """Compute on the host which nodes and candidates `loss` needs for a batch."""
        return self.planner.plan(batch)

    def loss(self, plan: StepPlan) -> TrainingLoss:
        """Return the mean negative log-likelihood of the targets and the accuracy of each level.

        Args:
            plan: Plan of the batch, from `plan`.
        """
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
            # An only child has probability 1, so it is not scored.
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
        """Return the scores of the candidates of each open target; missing candidates have -inf.

        Shapes: O open targets, U nodes of this level that the step needs, D model dimensions.

        Args:
            queries: Query of each open target ``[O, D]``.
            vectors: Vectors of the nodes of this level ``[U, D]``.
            choice: Plan of this level, which lists the candidates of each target.
            level: Level whose learned score is added to nodes whose items are all in the history.

        Returns:
            Scores, float32 ``[O, choice.width]``.
        """
        if level == 0:  # All targets are at the root, so one matrix product suffices.
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
        """Return the scores of all codes of a level, with -inf for codes that lead to a child.

        The other codes lead to no item. They compete with the children if ``trie_softmax`` is off.

        Shapes: M targets, D model dimensions.

        Args:
            queries: Queries ``[M, D]``.
            firsts: First child of each query's node ``[M]``.
            counts: Number of children of each query's node ``[M]``.
            level: Level of the codes.

        Returns:
            Scores ``[M, K]`` for K codes, or ``[M, 0]`` at a level without code embeddings.
        """
        others = (queries @ self.nodes.vectors_of_codes(level).T).float()
        if not others.shape[1]:
            return others
        columns = torch.arange(self.trie.most_children[level], device=firsts.device)
        present = columns < counts.unsqueeze(-1)
        children = (firsts.unsqueeze(-1) + columns).masked_fill_(~present, 0)
        # One further column receives the entries that are not children.
        num_codes = others.shape[1]
        codes = torch.where(present, self.trie.node_codes[children], num_codes).long()
        leads_on = others.new_zeros(len(others), num_codes + 1, dtype=torch.bool)
        leads_on.scatter_(1, codes, True)
        return others.masked_fill(leads_on[:, :num_codes], float("-inf"))

    def _negative_log_likelihood(
        self, scores: Tensor, columns: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the sum of -log P(right child) over rows of scores, smoothed over all children.

        Shapes: M targets, C children per target.

        Args:
            scores: Scores ``[M, C]``.
            columns: Column of the right child in each row ``[M]``.
            weights: Weight of each row ``[M]``. None weights all rows equally.
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
        """Return the number of trainable parameters of each part, by name of the part."""
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
