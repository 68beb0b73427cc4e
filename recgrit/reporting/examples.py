"""Some users: their history, what they were recommended, and whether it was right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.evaluation.metrics import MISSED, Ranks
from recgrit.reporting.tree import shorten
from recgrit.runs import Run

TOP_K = 10
HISTORY_SHOWN = 8
# (Label, lowest and highest rank, users): right at once, in the list, missed.
KINDS = (("found at once", 1, 1, 2), ("in the top 10", 2, TOP_K, 3), ("missed", MISSED, MISSED, 3))


@dataclass(frozen=True)
class ExampleItem:
    """An item as it is shown: its title, and its semantic ID as text, empty where it has none."""

    title: str
    semantic_id: str


@dataclass(frozen=True)
class ExampleUser:
    """One test target of a user.

    Args:
        user_id: External id.
        kind: How the search fared.
        num_history: Items before the target.
        history: The latest of these, the newest last.
        target: What the user interacted with next.
        recommended: The top 10 after this history, best first.
        rank: The target's place among them, 0 if it is not.
    """

    user_id: str
    kind: str
    num_history: int
    history: tuple[ExampleItem, ...]
    target: ExampleItem
    recommended: tuple[ExampleItem, ...]
    rank: int


def choose_targets(ranks: Ranks, *, seed: int) -> npt.NDArray[np.int64]:
    """Rows of some targets of each kind, at random within it; the first few are of all kinds."""
    draw = np.random.default_rng(seed)
    chosen: list[tuple[int, int]] = []
    for _, low, high, number in KINDS:
        rows = np.flatnonzero((ranks >= low) & (ranks <= high))
        chosen += enumerate(draw.permutation(rows)[:number].tolist())
    return np.array([row for _, row in sorted(chosen, key=lambda turn: turn[0])], dtype=np.int64)


def show_users(run: Run, *, seed: int) -> tuple[ExampleUser, ...]:
    """Recommend to some users of the test split as its evaluation did, with titles."""
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
