"""Several retrievers as one ranker: the mean of their probabilities.

Each may have semantic IDs of its own, so an item has several IDs and is found by any of them; what
they agree on is the item. The mean of probabilities is again one over items; where neighbours boost
scores, it is the mean of what they make of the probabilities.

Shapes: B users, K listed items, R rankers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import ConfigError
from recgrit.ranking import NEVER, Histories, Ranked, Ranker
from recgrit.retrieval.leaves import merge_runs


class FusedRanker:
    """Ranks items by the mean probability over several rankers.

    Args:
        rankers: Their scores are those of the retriever, over the same items: log P(item |
            history), or more where neighbours boost it.
        depth: Items asked of each ranker, at most its beam width; what is farther down its list
            counts as probability 0.

    Raises:
        ConfigError: There are none, or they read histories of different lengths.
    """

    def __init__(self, rankers: Sequence[Ranker], *, depth: int = 50) -> None:
        lengths = {ranker.history_length for ranker in rankers}
        if len(lengths) != 1:
            raise ConfigError(
                "Rankers can be fused if they all read histories of one length, got "
                f"{len(rankers)} with lengths {sorted(lengths)}. Train them with the same "
                "retriever.history_length."
            )
        self.rankers = list(rankers)
        self.depth = depth

    @property
    def history_length(self) -> int:
        """Items of a history that are read."""
        return self.rankers[0].history_length

    @property
    def batch_users(self) -> int:
        """Users ranked at once."""
        return min(ranker.batch_users for ranker in self.rankers)

    @property
    def device(self) -> torch.device:
        """Where histories are wanted."""
        return self.rankers[0].device

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories."""
        depth = max(top_k, self.depth)
        found = [ranker.rank(histories, top_k=depth, excluded=excluded) for ranker in self.rankers]
        items, order = torch.cat([ranked.items for ranked in found], dim=1).sort(dim=-1)
        weights = torch.cat([ranked.scores for ranked in found], dim=1).double().exp()
        sums = merge_runs(items, weights.gather(1, order))
        best = (sums / len(self.rankers)).log().float().topk(min(top_k, items.shape[1]), dim=-1)
        return Ranked(
            items.gather(1, best.indices).masked_fill(best.values == NEVER, NO_ITEM), best.values
        )
