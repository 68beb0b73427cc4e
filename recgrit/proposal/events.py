"""Event types of a shop's log: the proposed weight of each type, and the types to predict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from recgrit.data.events import EVENT, EventTypes
from recgrit.proposal.questions import Ask, Question

# Largest number of event types with unknown names that the user is asked about. With more, no
# question is asked.
MAX_QUESTIONS = 8
# Largest share of rows without an event type. These rows are left out. With a larger share, the
# proposed weights are uncertain.
MAX_BLANK = 0.01
# Number of test users that is always enough, even if it is a small share of all users.
ENOUGH_USERS = 100
LEAVE_OUT, UNANSWERED = "null", ""

WEIGHTS: dict[int, tuple[str, ...]] = {
    1: ("view", "click", "visit", "open", "detail", "impression", "pageview", "play", "watch",
        "pv", "read"),
    3: ("cart", "basket", "wishlist", "favorite", "favourite", "fav", "like", "save", "bookmark",
        "checkout"),
    5: ("purchase", "buy", "order", "transaction", "sale", "sold", "paid", "payment", "booking"),
}  # fmt: skip
UNDONE = ("remove", "return", "refund", "cancel", "delete", "dislike", "unlike", "chargeback")


def weigh_event(name: str) -> int | None:
    """Return the weight of an event type by its name; None if the name says nothing.

    The weight is 1 for a view, 3 for a wish such as a cart, 5 for a purchase, and 0 for an event
    that undoes another, such as a refund.

    >>> [weigh_event(name) for name in ("product_view", "add-to-cart", "PURCHASE", "refund", "x")]
    [1, 3, 5, 0, None]
    """
    plain = re.sub(r"[^a-z]", "", name.lower())
    if any(word in plain for word in UNDONE):
        return 0
    for weight in (3, 5, 1):  # 'cart' comes first, because 'order cart' and 'view cart' contain it.
        words = WEIGHTS[weight]
        if plain in words or any(word in plain for word in words if len(word) > 2):
            return weight
    return None


def is_event(name: str) -> bool:
    """Return whether a word is the name of an event type."""
    return weigh_event(name) is not None


@dataclass(frozen=True)
class EventChoice:
    """The proposed settings of event types.

    Args:
        weights: Weight of each event type. None leaves out the rows of the type.
        targets: Event types that are predicted.
        doubt: Reason why the settings are only written as comments, as part of a sentence. Empty if
            they are certain.
        asked: Number of users with at least two target events. A user with fewer cannot be tested.
            None if it was not counted.
    """

    weights: dict[str, int | None]
    targets: tuple[str, ...]
    doubt: str = ""
    asked: int | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the settings are certain, so that the configuration can use them."""
        return not self.doubt


def choose_events(types: Mapping[str, int], num_blank: int, ask: Ask) -> EventChoice:
    """Choose the weight of each event type, and ask about types whose names say nothing.

    No question is asked if more than 8 types have such names. Types without an answer get weight 1,
    and the choice is then uncertain.

    Args:
        types: Number of rows of each event type.
        num_blank: Number of rows without an event type.
        ask: Function that answers questions about types with unknown names.
    """
    weights = {name: weigh_event(name) for name in types}
    unknown = [name for name, weight in weights.items() if weight is None]
    if len(unknown) <= MAX_QUESTIONS:
        for name in list(unknown):
            if (answer := ask(_about(name, types[name]))) != UNANSWERED:
                weights[name] = None if answer == LEAVE_OUT else int(answer)
                unknown.remove(name)
    # Weight 0 becomes None: rows of events that undo another are left out.
    found = {name: weight or None for name, weight in weights.items()}
    found |= dict.fromkeys(unknown, 1)
    doubt = ""
    if unknown:
        is_many = len(unknown) > 1
        doubt = (
            f"it is unknown what {', '.join(unknown[:5])}{' and more' if len(unknown) > 5 else ''} "
            f"{'are' if is_many else 'is'} worth"
        )
    elif num_blank > MAX_BLANK * (sum(types.values()) + num_blank):
        doubt = f"{num_blank:,} rows have no type and would be left out"
    elif not any(found.values()):
        doubt = "no type would be left"
    return EventChoice(found, propose_targets(found), doubt)


def _about(name: str, count: int) -> Question:
    return Question(
        f"What is an event of type {name!r} ({count:,} rows) worth: 1 as a view, 3 as an item "
        f"put into the cart, 5 as a purchase, or {LEAVE_OUT} to leave it out?",
        ["1", "3", "5", LEAVE_OUT],
        "1",
        "data.event_weights",
        unanswered=UNANSWERED,
    )


def propose_targets(weights: Mapping[str, int | None], num_steps: int = 0) -> tuple[str, ...]:
    """Return the event types to predict: those with the highest weight.

    Args:
        weights: Weight of each event type.
        num_steps: Number of lower weights whose types are also targets. They are needed if the
            types of the highest weight are too few to learn from.
    """
    steps = sorted({weight for weight in weights.values() if weight}, reverse=True)
    lowest = steps[min(num_steps, len(steps) - 1)] if steps else 0
    return tuple(name for name, weight in weights.items() if weight and weight >= lowest)


def settle_targets(choice: EventChoice, rows: pl.DataFrame, names: Sequence[str]) -> EventChoice:
    """Choose the fewest target types that leave enough users to test on.

    Args:
        choice: Choice that was made from the names of the types.
        rows: Rows that the filters leave, with columns ``user_id`` and ``event`` (position in
            ``names``). Each user has three or more rows, all of types with a weight, so enough
            users are left if all types are targets.
        names: Names of the event types.

    Returns:
        The same choice with these targets, and with the number of users that are left. If no choice
        leaves enough users, all types with a weight are targets.
    """
    enough = min(ENOUGH_USERS, rows["user_id"].n_unique() // 10)
    num_weights = len({weight for weight in choice.weights.values() if weight})
    found = choice
    for num_steps in range(num_weights):
        targets = propose_targets(choice.weights, num_steps)
        places = [names.index(name) for name in targets if name in names]
        per_user = rows.filter(pl.col(EVENT).is_in(places)).group_by("user_id").len()["len"]
        found = replace(choice, targets=targets, asked=int((per_user >= 2).sum()))
        if found.asked and found.asked >= enough:
            break
    return found


def count_targets(rows: pl.DataFrame, choice: EventChoice | None, types: EventTypes | None) -> int:
    """Return the approximate number of events that training predicts in an epoch.

    The last two targets of a user are held out for validation and test. Without event types, the
    first event of a user is not predicted either, because nothing precedes it.

    Args:
        rows: Rows that the filters leave, with column ``user_id`` and, if events have types,
            ``event``.
        choice: Choice of the target types. None predicts all events.
        types: Event types by their position in ``event``. None if types have no weights.
    """
    if types is not None and choice is not None:
        places = [types.names.index(name) for name in choice.targets]
        rows = rows.filter(pl.col(EVENT).is_in(places))
        held_out = 2  # The first target counts too, because events of other types may precede it.
    else:
        held_out = 3
    per_user = rows.group_by("user_id").len()["len"].cast(pl.Int64) - held_out
    return int(per_user.clip(lower_bound=0).sum())
