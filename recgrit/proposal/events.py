"""Kinds of events in a shop's log: what each is worth, and which are no interest at all."""

from __future__ import annotations

import re
from collections.abc import Mapping

WEIGHTS: dict[int, tuple[str, ...]] = {
    1: ("view", "click", "visit", "open", "detail", "impression", "pageview", "play", "watch",
        "pv", "read"),
    3: ("cart", "basket", "wishlist", "favorite", "favourite", "fav", "like", "save", "bookmark",
        "checkout"),
    5: ("purchase", "buy", "order", "transaction", "sale", "sold", "paid", "payment", "booking"),
}  # fmt: skip
UNDONE = ("remove", "return", "refund", "cancel", "delete", "dislike", "unlike", "chargeback")


def weigh_event(kind: str) -> int | None:
    """What an event of a kind is worth: 1 a look, 3 a wish, 5 a purchase, 0 for one undone.

    None where the name says nothing.

    >>> [weigh_event(kind) for kind in ("product_view", "add-to-cart", "PURCHASE", "refund", "x")]
    [1, 3, 5, 0, None]
    """
    plain = re.sub(r"[^a-z]", "", kind.lower())
    if any(word in plain for word in UNDONE):
        return 0
    for weight in (3, 5, 1):  # 'cart' first: it stands in 'order cart' and 'view cart' too.
        words = WEIGHTS[weight]
        if plain in words or any(word in plain for word in words if len(word) > 2):
            return weight
    return None


def is_event(kind: str) -> bool:
    """Whether a word names a kind of event."""
    return weigh_event(kind) is not None


def propose_weights(kinds: Mapping[str, int]) -> dict[str, int]:
    """A weight for each kind, by how often it is there; those of unknown kinds are 1."""
    weights = {kind: weigh_event(kind) for kind in kinds}
    return {kind: 1 if weight is None else weight for kind, weight in weights.items()}


def propose_targets(weights: Mapping[str, int]) -> list[str]:
    """The kinds worth predicting: those of the highest weight."""
    top = max(weights.values(), default=0)
    return [kind for kind, weight in weights.items() if weight == top]
