"""Why an item is where it is in a list: the walk to it down the trie, level by level.

P(item | history) is a product over levels, of the probability of the item's code there given the
codes before it. Each factor says how the item fared among its siblings, and how much of that came
from the neighbours' counts and not from the transformer. Only the nodes on the way are opened: it
costs one step per level, whatever the catalogue's size.

Shapes: C children, D model dimensions, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recgrit.retrieval.decoding import expand
from recgrit.retrieval.frontier import Frontier
from recgrit.retrieval.node_vectors import look_up
from recgrit.retrieval.ranking import Histories
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.semantic_ids.table import SemanticIdTable, semantic_id_tokens


@dataclass(frozen=True)
class Choice:
    """One level on the way to an item: the children of the node reached so far.

    Args:
        nodes: int64 ``[C]``.
        chosen: Which of them leads on to the item.
        probabilities: float64 ``[C]``, given the codes before and the history; they sum to 1 where
            the retriever normalises over the trie.
        neighbour_shares: float64 ``[C]``, how much of each comes from the neighbours.
        boosts: float64 ``[C]``, what the neighbours add to the score of the prefix beside that.
    """

    nodes: npt.NDArray[np.int64]
    chosen: int
    probabilities: npt.NDArray[np.float64]
    neighbour_shares: npt.NDArray[np.float64]
    boosts: npt.NDArray[np.float64]


@torch.inference_mode()
def walk_to_item(ranker: TrieRanker, history: Histories, item: int) -> list[Choice]:
    """The choices that lead to an item after one history; their chosen probabilities multiply to P.

    A prefix has the probability of all items below it, and the mixture of the model's and the
    neighbours' is taken there; a choice then is the ratio of a prefix to the one before.
    """
    model, read = ranker.model, ranker.read(history)
    chosen = None
    of_model = of_mixture = 1.0
    node = torch.zeros(1, 1, dtype=torch.long, device=ranker.device)
    choices = []
    for level, following in enumerate(model.paths[item].tolist()):
        frontier = Frontier.build(model.child_starts, node)
        log_probs = expand(
            model, read.states, chosen, node, frontier, ranker.node_vectors, read.seen, level
        )
        children = frontier.children[0, 0].cpu().numpy()
        modelled = of_model * log_probs[0, 0].double().exp().cpu().numpy()
        added, left = np.zeros(len(children)), 1.0
        boosts = np.zeros(len(children))
        if read.neighbours is not None:
            weights = read.neighbours.weights
            above = frontier.find(model.nodes_above(read.neighbours.leaves, level))[0]
            np.add.at(added, above[above >= 0].cpu().numpy(), weights[0, above >= 0].cpu().numpy())
            left = 1.0 - weights.sum().item()
            boosts = read.neighbours.boosts(torch.from_numpy(added)).double().numpy()
        mixed = left * modelled + added
        column = following - int(children[0])
        choices.append(
            Choice(
                nodes=children,
                chosen=column,
                probabilities=mixed / of_mixture,
                neighbour_shares=added / np.maximum(mixed, np.finfo(float).tiny),
                boosts=boosts,
            )
        )
        of_model, of_mixture = float(modelled[column]), float(mixed[column])
        node = torch.full_like(node, following)
        vectors = model.input_scale * look_up(ranker.node_vectors, node)
        chosen = vectors if chosen is None else chosen + vectors
    return choices


def name_choices(
    ranker: TrieRanker,
    table: SemanticIdTable,
    choices: list[Choice],
    counts: npt.NDArray[np.int64],
    *,
    num_siblings: int,
    num_titles: int,
) -> pl.DataFrame:
    """Choices as a table with codes and titles.

    Args:
        ranker: Whose trie they are of.
        table: The catalogue.
        choices: From `walk_to_item`.
        counts: ``[N]``, by which the items below a node are ordered: the most taken stand for it.
        num_siblings: Siblings of the chosen code shown at each level, those that score most.
        num_titles: Titles shown of each code.

    Returns:
        As `recgrit.runs.Run.explain`.
    """
    model = ranker.model
    rows = []
    for level, choice in enumerate(choices):
        with np.errstate(divide="ignore"):  # What is impossible comes last.
            scores = np.log(choice.probabilities) + choice.boosts
        order = np.argsort(-scores, kind="stable")
        ranks = np.empty_like(order)
        ranks[order] = np.arange(1, len(order) + 1)
        best = [column for column in order.tolist() if column != choice.chosen][:num_siblings]
        for column in sorted([choice.chosen, *best], key=lambda column: ranks[column]):
            node = int(choice.nodes[column])
            below = model.leaf_items[model.leaf_starts[node] : model.leaf_ends[node]].cpu().numpy()
            typical = below[np.argsort(-counts[below], kind="stable")[:num_titles]]
            # The codes up to this level; the last of their tokens is the code's own.
            codes = table.codes[int(below[0]), : level + 1].tolist()
            rows.append(
                {
                    "level": level,
                    "code": semantic_id_tokens(codes)[-1],
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
