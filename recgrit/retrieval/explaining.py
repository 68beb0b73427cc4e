"""Explanation of an item's score by the walk to the item down the trie, level by level.

P(item | history) is a product over levels. The factor of a level is the probability of the item's
code given the codes before it. Each factor shows how the item compares with its siblings, and how
much of the probability comes from the neighbour counts instead of the transformer. Only the nodes
on the way are expanded, so an explanation costs one step per level for a catalogue of any size.

Shapes: C children, D model dimensions, L levels, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from recgrit.ranking import Histories
from recgrit.retrieval.decoding import weigh_candidates
from recgrit.retrieval.frontier import Frontier
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.semantic_ids.table import SemanticIdTable, semantic_id_tokens

# Lower bound of a probability that is divided by.
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Choice:
    """The choice at one level on the way to an item, among the children of the node reached so far.

    Shapes: C children.

    Args:
        nodes: Node numbers of the children, int64 ``[C]``.
        chosen: Index of the child that leads to the item.
        probabilities: Probability of each child given the codes before and the history, float64
            ``[C]``. They sum to 1 if the retriever normalises over the trie.
        neighbour_shares: Share of each prefix's probability that comes from the neighbours, float64
            ``[C]``.
        boosts: Neighbours' additive bonus in the score of each prefix, float64 ``[C]``.
    """

    nodes: npt.NDArray[np.int64]
    chosen: int
    probabilities: npt.NDArray[np.float64]
    neighbour_shares: npt.NDArray[np.float64]
    boosts: npt.NDArray[np.float64]


@torch.inference_mode()
def walk_to_item(ranker: TrieRanker, history: Histories, item: int) -> list[Choice]:
    """Return the choices that lead to an item after one history.

    The product of the chosen probabilities is P(item | history). The probability of a prefix is
    that of all items below it, as a mixture of the model's and the neighbours' probabilities. The
    probability of a choice is the ratio of the probability of its prefix to that of the prefix
    before.

    Args:
        ranker: Ranker whose score is explained.
        history: History of one user.
        item: Item whose score is explained.
    """
    trie, walk = ranker.model.trie, ranker.read(history)
    neighbours = ranker.model.weigh_neighbours(history)
    chosen = None
    node = torch.zeros(1, 1, dtype=torch.long, device=ranker.device)
    log_model = log_before = torch.zeros(1, 1, device=ranker.device)
    choices = []
    for level, following in enumerate(trie.paths[item].tolist()):
        frontier = Frontier.build(trie.child_starts, node)
        log_probs = log_model + walk.expand(chosen, frontier, level).flatten(1)
        log_mixture = log_probs
        added = bonus = torch.zeros_like(log_probs)
        if neighbours is not None:
            columns, weights, bonuses = weigh_candidates(trie, frontier, neighbours, level)
            at, is_none = columns.clamp_min(0), columns < 0
            added = added.double().scatter_add(1, at, weights.masked_fill(is_none, 0.0))
            bonus = bonus.scatter_add(1, at, bonuses.masked_fill(is_none, 0.0))
            log_mixture = neighbours.mix(log_probs, columns, weights, bonuses) - bonus
        column = following - int(frontier.firsts)
        choices.append(
            Choice(
                nodes=frontier.children[0, 0].cpu().numpy(),
                chosen=column,
                probabilities=_to_numpy((log_mixture - log_before).exp()),
                neighbour_shares=_to_numpy(added / log_mixture.double().exp().clamp_min(TINY)),
                boosts=_to_numpy(bonus),
            )
        )
        log_model, log_before = log_probs[:, [column]], log_mixture[:, [column]]
        node = torch.full_like(node, following)
        chosen = walk.extend(chosen, node, level)
    return choices


def _to_numpy(row: Tensor) -> npt.NDArray[np.float64]:
    """Convert a row ``[1, C]`` to an array ``[C]``.

    Shapes: C children.
    """
    values: npt.NDArray[np.float64] = row[0].double().cpu().numpy()
    return values


def name_choices(
    ranker: TrieRanker,
    table: SemanticIdTable,
    choices: list[Choice],
    counts: npt.NDArray[np.int64],
    *,
    num_siblings: int,
    num_titles: int,
) -> pl.DataFrame:
    """Return choices as a table with codes and titles.

    Args:
        ranker: Ranker whose trie the choices belong to.
        table: Semantic IDs and titles of the catalogue.
        choices: Choices from `walk_to_item`.
        counts: Number of interactions of each item ``[N]``. A node is described by the titles of
            its items with the most interactions.
        num_siblings: Maximum number of siblings of the chosen code to show at each level, best
            scores first.
        num_titles: Maximum number of titles to show per code.

    Returns:
        A table with the columns of `recgrit.runs.Run.explain`.
    """
    trie = ranker.model.trie
    rows = []
    for level, choice in enumerate(choices):
        with np.errstate(divide="ignore"):  # Probability 0 gives -inf, which ranks last.
            scores = np.log(choice.probabilities) + choice.boosts
        order = np.argsort(-scores, kind="stable")
        ranks = np.empty_like(order)
        ranks[order] = np.arange(1, len(order) + 1)
        best = [column for column in order.tolist() if column != choice.chosen][:num_siblings]
        for column in sorted([choice.chosen, *best], key=lambda column: ranks[column]):
            node = int(choice.nodes[column])
            below = trie.leaf_items[trie.leaf_starts[node] : trie.leaf_ends[node]].cpu().numpy()
            typical = below[np.argsort(-counts[below], kind="stable")[:num_titles]]
            # The last choice is among all remaining codes.
            end = table.id_length if level + 1 == trie.num_levels else level + 1
            tokens = semantic_id_tokens(table.codes[int(below[0]), :end].tolist())
            rows.append(
                {
                    "level": level,
                    "code": "".join(tokens[level:]),
                    "chosen": column == choice.chosen,
                    "rank": int(ranks[column]),
                    "num_codes": len(order),
                    "probability": float(choice.probabilities[column]),
                    "neighbour_share": float(choice.neighbour_shares[column]),
                    "boost": float(choice.boosts[column]),
                    "num_items": len(below),
                    "titles": table.titles.gather(typical.tolist()).to_list(),
                }
            )
    return pl.DataFrame(rows)
