"""Settings of the retriever and of recommendations. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recgrit.training.config import TransformerConfig

NeighbourKind = Literal["near", "next", "alike"]

PREFIXES_PER_ITEM = 2


def search_width(beam_width: int, top_k: int, num_items: int) -> int:
    """Return the number of prefixes to keep at each level: at least two per requested item.

    With one prefix per requested item, most users miss an item of the exact list. The measurements
    are in docs/explanation/trie_softmax.md. A level never has more prefixes than there are items.

    Args:
        beam_width: Beam width from the settings.
        top_k: Number of items to recommend.
        num_items: Number of items in the catalogue.

    >>> search_width(50, 10, 1000), search_width(50, 40, 1000), search_width(50, 40, 60)
    (50, 80, 60)
    """
    return max(top_k, min(max(beam_width, PREFIXES_PER_ITEM * top_k), num_items))


class RetrieverConfig(TransformerConfig):
    """Settings of the retriever and its training.

    The retriever chooses an item's ID code by code, on a walk down the trie (prefix tree) of all
    IDs.

    Args:
        node_dropout: Share of the embeddings of trie nodes that a shared fallback embedding
            replaces in each training step. This trains the fallback, which scores items without
            training interactions.
        tree_levels: Number of codes of an ID that are chosen one after another. One last step then
            chooses among the items that share these codes. 0 chooses among all items at once, which
            suits up to about 10,000 items. None chooses all codes one after another. Set it for
            long IDs.
        label_smoothing: Share of each target's probability that is spread evenly over all children
            of the same node. 0 switches label smoothing off.
        neighbours: Kinds of items whose scores are raised because they are neighbours of the
            history's last items. ``near`` items are close to them in other histories. ``next``
            items directly follow them in other histories. ``alike`` items have similar texts. The
            strength of each kind is fitted on validation targets. An empty list uses the model
            alone.
        seen_scores: Whether to learn a score that is added to items that the history already
            contains. The model learns with it whether users return to the same items.
        size: Nodes of the trie that get their own embedding, which decides whether the model grows
            with the catalogue. ``catalogue`` means every node. ``prefixes`` means the nodes above
            several items. ``constant`` means no node: the model uses the codes alone, so that a new
            item is scored like all others.
        node_buckets: With ``size=constant``, number of rows of a further embedding table that nodes
            share by a hash. Children of one node never share a row. Allowed values are 0, which
            means no table, and at least the size of the largest codebook.
        item_attributes: Columns of the item table, such as ``[category, price]``, that the history
            encoder reads for each item. Words and lists of words are used as they are. Numbers are
            replaced by the tenth of the training items that they fall in. Missing values and values
            that are rare in training count as unknown.
        user_attributes: Columns of the user table, such as ``[segment]``, that the history encoder
            reads in a token before the history. Values are treated as in ``item_attributes``. Users
            outside the training count as unknown. In each training step a share ``node_dropout`` of
            the other users also counts as unknown.
        trie_softmax: Whether probabilities are normalised over the children of the current node.
            False normalises over all codes of the level, as published retrievers do.
        valid_beam_width: Number of prefixes that the beam search keeps per level in the validation
            during training.
        init_from: Bundle or run folder whose trained weights the training starts from. Its items
            keep their IDs. New items get IDs as ``recgrit append`` assigns them. None trains from
            scratch.
    """

    node_dropout: float = Field(0.05, ge=0, lt=1)
    tree_levels: int | None = Field(None, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    neighbours: tuple[NeighbourKind, ...] = ("near", "next", "alike")
    seen_scores: bool = True
    size: Literal["catalogue", "prefixes", "constant"] = "catalogue"
    node_buckets: int = Field(0, ge=0, le=2**31)
    item_attributes: tuple[str, ...] = ()
    user_attributes: tuple[str, ...] = ()
    trie_softmax: bool = True
    valid_beam_width: int = Field(30, ge=10, le=100_000)
    init_from: Path | None = None

    @model_validator(mode="after")
    def _check_attributes(self) -> RetrieverConfig:
        for setting in ("item_attributes", "user_attributes"):
            names = getattr(self, setting)
            if names and self.init_from is not None:
                raise ValueError(
                    f"{setting} does not work with init_from: its values are learned in training. "
                    "Set only one of them"
                )
            if len(set(names)) < len(names):
                raise ValueError(f"{setting} names a column twice")
        return self

    @model_validator(mode="after")
    def _check_buckets(self) -> RetrieverConfig:
        if self.node_buckets and self.size != "constant":
            raise ValueError(
                f"node_buckets {self.node_buckets} works only with a retriever of constant size: "
                f"set size to constant (now {self.size}), or node_buckets to 0"
            )
        return self
