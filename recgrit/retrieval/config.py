"""Settings of the retriever and of recommendations; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recgrit.training.config import TransformerConfig

NeighbourKind = Literal["near", "next", "alike"]

PREFIXES_PER_ITEM = 2


def search_width(beam_width: int, top_k: int, num_items: int) -> int:
    """Prefixes to keep at each level where ``top_k`` items are wanted: at least two for each.

    With one prefix for each, most users miss some item of the exact list:
    docs/explanation/trie_softmax.md has the measurements. No level has more prefixes than there
    are items.

    >>> search_width(50, 10, 1000), search_width(50, 40, 1000), search_width(50, 40, 60)
    (50, 80, 60)
    """
    return max(top_k, min(max(beam_width, PREFIXES_PER_ITEM * top_k), num_items))


class RetrieverConfig(TransformerConfig):
    """Settings of the retriever and its training.

    Args:
        node_dropout: Fraction of nodes that use the fallback vector in a training step.
        tree_levels: Codes of an ID that are chosen one after another; what is left of it tells
            apart, at once, the items that share them. None for all codes.
        label_smoothing: Fraction of each target spread over its siblings.
        neighbours: Kinds of neighbours of the history's last items that count beside the model:
            what stands ``near`` them in other histories, what comes ``next`` there, and what is
            ``alike`` by its text. How much each counts is fitted on validation targets.
        seen_scores: Learn a score for items that the history holds already.
        size: What the trained parameters grow with. ``catalogue`` gives every node of the trie a
            vector of its own, ``prefixes`` those above several items; ``constant`` gives none and
            leaves it to the codes, so that a new item lacks nothing that others have.
        node_buckets: With ``constant``, rows of a table that nodes share by a hash, children of one
            node never: at least as many as the largest codebook has codes; 0 for no table.
        item_attributes: Columns of the item table, such as ``[category, price]``, whose values the
            history encoder reads beside the items: words and lists of words as they are, numbers by
            tenths of the training items. What is missing, or rare in training, is unknown.
        user_attributes: Columns of the users' table, such as ``[segment]``, that the history
            encoder reads in a token before the history, in the same way. Users whom the training
            did not see are unknown, and so is a share ``node_dropout`` of the others in a training
            step.
        trie_softmax: Normalise over the children of a node; false over all codes of the level.
        valid_beam_width: Beam width of validation while training.
        init_from: A bundle, or the folder of a run, to train on from: its items keep their IDs, new
            ones get theirs as by ``recgrit append``, and the training begins with its weights.
            None to train from scratch.
    """

    node_dropout: float = Field(0.05, ge=0, lt=1)
    tree_levels: int | None = Field(None, ge=1)
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
                    f"{setting} does not go with init_from: what values there are is learned in "
                    "the training. Set one of them"
                )
            if len(set(names)) < len(names):
                raise ValueError(f"{setting} names a column twice")
        return self

    @model_validator(mode="after")
    def _check_buckets(self) -> RetrieverConfig:
        if self.node_buckets and self.size != "constant":
            raise ValueError(
                f"node_buckets {self.node_buckets} is a table for a retriever of constant size: "
                f"set size to constant (now {self.size}), or node_buckets to 0"
            )
        return self
