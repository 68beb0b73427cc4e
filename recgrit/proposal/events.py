"""Types of events in a shop's log: what each is worth, and which are no interest at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from recgrit.data.events import EVENT, EventTypes
from recgrit.proposal.questions import Ask, Question

# Of more types without a known name nobody wants to be asked.
MAX_QUESTIONS = 8
# Share of rows without a type that may be left out.
MAX_BLANK = 0.01
# Users to test on that are enough, whatever share of all they are.
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
    """What an event of a type is worth: 1 a look, 3 a wish, 5 a purchase, 0 for one undone.

    None where the name says nothing.

    >>> [weigh_event(name) for name in ("product_view", "add-to-cart", "PURCHASE", "refund", "x")]
    [1, 3, 5, 0, None]
    """
    plain = re.sub(r"[^a-z]", "", name.lower())
    if any(word in plain for word in UNDONE):
        return 0
    for weight in (3, 5, 1):  # 'cart' first: it stands in 'order cart' and 'view cart' too.
        words = WEIGHTS[weight]
        if plain in words or any(word in plain for word in words if len(word) > 2):
            return weight
    return None


def is_event(name: str) -> bool:
    """Whether a word names a type of event."""
    return weigh_event(name) is not None


@dataclass(frozen=True)
class EventChoice:
    """What a configuration says of the types of events.

    Args:
        weights: Of each type; None leaves its rows out.
        targets: The types that are predicted.
        doubt: Why this is only a proposal, in a sentence; empty where it is sure.
        asked: Users of whom two target events are left, the least that tests one; None where it
            was not counted.
    """

    weights: dict[str, int | None]
    targets: tuple[str, ...]
    doubt: str = ""
    asked: int | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the configuration may say so."""
        return not self.doubt


def choose_events(types: Mapping[str, int], num_blank: int, ask: Ask) -> EventChoice:
    """What each type of events is worth; types whose names say nothing are asked about.

    Args:
        types: How often each is there.
        num_blank: Rows that have none.
        ask: Answers what the names leave open.
    """
    weights = {name: weigh_event(name) for name in types}
    unknown = [name for name, weight in weights.items() if weight is None]
    if len(unknown) <= MAX_QUESTIONS:
        for name in list(unknown):
            if (answer := ask(_about(name, types[name]))) != UNANSWERED:
                weights[name] = None if answer == LEAVE_OUT else int(answer)
                unknown.remove(name)
    # Undone is no interest: such rows are left out, as those a person says are none.
    found = {name: weight or None for name, weight in weights.items()}
    found |= dict.fromkeys(unknown, 1)
    doubt = ""
    if unknown:
        is_many = len(unknown) > 1
        doubt = (
            f"nothing tells what {', '.join(unknown[:5])}{' and more' if len(unknown) > 5 else ''} "
            f"{'are' if is_many else 'is'} worth"
        )
    elif num_blank > MAX_BLANK * (sum(types.values()) + num_blank):
        doubt = f"{num_blank:,} rows have no type and would be left out"
    elif not any(found.values()):
        doubt = "no type would be left"
    return EventChoice(found, propose_targets(found), doubt)


def _about(name: str, count: int) -> Question:
    return Question(
        f"What is an event of type {name!r} ({count:,} rows) worth: 1 as a view, 3 as what is put "
        f"into the cart, 5 as a purchase, or {LEAVE_OUT} to leave it out?",
        ["1", "3", "5", LEAVE_OUT],
        "1",
        "data.event_weights",
        unanswered=UNANSWERED,
    )


def propose_targets(weights: Mapping[str, int | None], num_steps: int = 0) -> tuple[str, ...]:
    """The types worth predicting: those of the highest weight.

    Args:
        weights: Weight of each type.
        num_steps: How many lower weights are taken in, where those are too few to learn from.
    """
    steps = sorted({weight for weight in weights.values() if weight}, reverse=True)
    lowest = steps[min(num_steps, len(steps) - 1)] if steps else 0
    return tuple(name for name, weight in weights.items() if weight and weight >= lowest)


def settle_targets(choice: EventChoice, rows: pl.DataFrame, names: Sequence[str]) -> EventChoice:
    """The same with the fewest types as targets that are enough to test on.

    Args:
        choice: As the types' names have it.
        rows: ``user_id`` and ``event`` (places in ``names``) of what filters leave: three or more
            of each user, all of types that count, so that all of them as targets are enough.
        names: The types.
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
    """Events that training predicts in an epoch, about: all but the last two and the first.

    Args:
        rows: ``user_id`` and, where events have types, ``event``, of what filters leave.
        choice: What is predicted; None for all.
        types: The types by their places in ``event``; None where they count for nothing.
    """
    if types is not None and choice is not None:
        places = [types.names.index(name) for name in choice.targets]
        rows = rows.filter(pl.col(EVENT).is_in(places))
        held_out = 2  # Before the first target there may be events of other types.
    else:
        held_out = 3
    per_user = rows.group_by("user_id").len()["len"].cast(pl.Int64) - held_out
    return int(per_user.clip(lower_bound=0).sum())
