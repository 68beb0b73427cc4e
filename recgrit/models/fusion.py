"""A ranker that combines several retrievers by the mean of their item probabilities.

The retrievers may have different semantic IDs over the same items. An item then has several IDs,
and each retriever can find it by its own ID. The mean of the probabilities is again a probability
distribution over items. Where neighbours add bonuses to the scores, the mean is over the
exponentials of these scores.

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
    """A ranker that orders items by their mean probability over several rankers.

    Args:
        rankers: Rankers over the same items. Their scores are log P(item | history), plus the
            additive bonus of neighbours if they use neighbours.
        depth: Number of items that each ranker lists, at most its beam width. A longer requested
            list raises it. An item that a ranker does not list counts with probability 0 for this
            ranker.

    Raises:
        ConfigError: There are no rankers, or they read histories of different lengths.
    """

    def __init__(self, rankers: Sequence[Ranker], *, depth: int = 50) -> None:
        lengths = {ranker.history_length for ranker in rankers}
        if len(lengths) != 1:
            raise ConfigError(
                "Rankers can be fused only if they read histories of the same length, got "
                f"{len(rankers)} with lengths {sorted(lengths)}. Train them with the same "
                "retriever.history_length."
            )
        self.rankers = list(rankers)
        self.depth = depth

    @property
    def history_length(self) -> int:
        """Largest number of items of a history that the rankers read, the most recent ones."""
        return self.rankers[0].history_length

    @property
    def batch_users(self) -> int:
        """Number of users that are ranked at once, the smallest of all rankers."""
        return min(ranker.batch_users for ranker in self.rankers)

    @property
    def device(self) -> torch.device:
        """Device on which the histories have to be, that of the first ranker."""
        return self.rankers[0].device

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """Return the ``top_k`` items with the highest mean probability for each history.

        The arguments are those of `recgrit.ranking.Ranker.rank`.
        """
        depth = max(top_k, self.depth)
        found = [ranker.rank(histories, top_k=depth, excluded=excluded) for ranker in self.rankers]
        items, order = torch.cat([ranked.items for ranked in found], dim=1).sort(dim=-1)
        weights = torch.cat([ranked.scores for ranked in found], dim=1).double().exp()
        sums = merge_runs(items, weights.gather(1, order))
        best = (sums / len(self.rankers)).log().float().topk(min(top_k, items.shape[1]), dim=-1)
        return Ranked(
            items.gather(1, best.indices).masked_fill(best.values == NEVER, NO_ITEM), best.values
        )
