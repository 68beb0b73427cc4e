"""Example users of a page: their history, their recommendations, and the item they chose next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.evaluation.metrics import MISSED, Ranks
from recgrit.reporting.tree import shorten
from recgrit.runs import Run

TOP_K = 10
HISTORY_SHOWN = 8
# Kinds of example users: label, lowest rank and highest rank of the target, number of users.
KINDS = (("at rank 1", 1, 1, 2), ("in the top 10", 2, TOP_K, 3), ("missed", MISSED, MISSED, 3))


@dataclass(frozen=True)
class ExampleItem:
    """An item as the page shows it.

    Args:
        title: Title of the item, shortened.
        semantic_id: Semantic ID as text. Empty if the run has no semantic IDs.
    """

    title: str
    semantic_id: str


@dataclass(frozen=True)
class ExampleUser:
    """One test target of a user, with the list that was recommended.

    Args:
        user_id: External id of the user.
        kind: Text that says whether the list has the target.
        num_history: Number of items before the target.
        history: The latest of these items, the newest last.
        target: The item that the user interacted with next.
        recommended: The top 10 items after this history, best first.
        rank: Rank of the target in the list, from 1; 0 if the list does not have it.
    """

    user_id: str
    kind: str
    num_history: int
    history: tuple[ExampleItem, ...]
    target: ExampleItem
    recommended: tuple[ExampleItem, ...]
    rank: int


def choose_targets(ranks: Ranks, *, seed: int) -> npt.NDArray[np.int64]:
    """Choose test targets at random from each kind: rank 1, in the top 10, and missed.

    The kinds alternate, so that the first few targets are of all kinds.

    Args:
        ranks: Rank of each test target.
        seed: Seed of the random choice.

    Returns:
        Row numbers of the chosen targets, int64.
    """
    draw = np.random.default_rng(seed)
    chosen: list[tuple[int, int]] = []
    for _, low, high, number in KINDS:
        rows = np.flatnonzero((ranks >= low) & (ranks <= high))
        chosen += enumerate(draw.permutation(rows)[:number].tolist())
    return np.array([row for _, row in sorted(chosen, key=lambda turn: turn[0])], dtype=np.int64)


def show_users(run: Run, *, seed: int) -> tuple[ExampleUser, ...]:
    """Return example users of the test split with their history, target and recommended list.

    Args:
        run: An evaluated run. Its evaluation settings are used to recommend.
        seed: Seed that selects the users.
    """
    from recgrit.ranking import recommend_items

    masked = run.config.recommendation.exclude_seen
    report = run.report("test", masked=masked)
    rows = choose_targets(report.ranks, seed=seed)
    users, sequences = report.users[rows], report.sequences[rows]
    split, titles = run.data.split, run.data.items.titles
    has_ids = "tokenize" in run.stages()
    found = recommend_items(
        run.ranker(),
        split,
        "test",
        sequences,
        top_k=min(TOP_K, split.num_items),
        masked=masked,
    )

    def show(item: int) -> ExampleItem:
        item_id = run.data.items.item_ids[item]
        semantic_id = run.semantic_ids.text_of(item_id) if has_ids else ""
        return ExampleItem(shorten(titles[item]), semantic_id)

    shown = []
    for user, sequence, items in zip(users.tolist(), sequences.tolist(), found.items, strict=True):
        history = split.history(sequence, "test")
        target = int(split.items[split.test_targets[sequence]])
        listed = [int(item) for item in items if item >= 0]
        rank = listed.index(target) + 1 if target in listed else MISSED
        kind = next(name for name, low, high, _ in KINDS if low <= rank <= high)
        shown.append(
            ExampleUser(
                user_id=str(run.data.interactions.user_ids[user]),
                kind=kind,
                num_history=len(history),
                history=tuple(show(int(item)) for item in history[-HISTORY_SHOWN:]),
                target=show(target),
                recommended=tuple(map(show, listed)),
                rank=rank,
            )
        )
    return tuple(shown)
