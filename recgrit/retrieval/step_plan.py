"""Plans of training steps, which list what a step needs from the trie before the step begins.

The batch and the trie determine which nodes a step needs, which children compete for each target,
and which of these children the history already contains. The plan is computed with numpy on the
host. All shapes are then known when the step runs, and the host never waits for an accelerator.

A node is *complete* from the position at which a history contains all its items. Completeness is
computed once per history instead of once per target.

Shapes: B users, T history items, M targets, L levels, U needed nodes, O open targets, C candidates
of all open targets, E nodes that are complete at some position.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recgrit.ranking import Batch, send
from recgrit.semantic_ids.trie import Children, Trie

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LevelPlan:
    """The part of a step plan for one level: its open targets and their candidates.

    A target is open if it has at least ``fewest`` candidates, a setting of `StepPlanner`. Nodes are
    numbered within the nodes of the level that the step needs. Each open target has a row of
    ``width`` scores, some of which have no candidate.

    Shapes: C candidates of all open targets.

    Args:
        open: Open targets, int64 ``[O]``.
        rows: Open target of each candidate, int64 ``[C]``, ascending.
        nodes: Node of each candidate, int64 ``[C]``; at level 0 ``[width]``, the same for all
            targets.
        places: Position of each candidate in the flattened table of scores, int64 ``[C]``. The
            table has O rows of ``width`` scores.
        by_node: Candidates in the order of their nodes, int64 ``[C]``.
        columns: Column of the right candidate, int64 ``[O]``.
        seen: Positions in the flattened table of scores of nodes whose items are all in the
            history, int64.
        parents: Node whose children are the candidates, int32 ``[O]``.
        width: Maximum number of candidates of a target.
    """

    open: Tensor
    rows: Tensor
    nodes: Tensor
    places: Tensor
    by_node: Tensor
    columns: Tensor
    seen: Tensor
    parents: Tensor
    width: int


@dataclass(frozen=True)
class StepPlan:
    """A batch, with the nodes and candidates that its training step needs.

    Shapes: U needed nodes, L levels.

    Args:
        positions: Supervised positions in the flattened histories, int64 ``[M]``.
        shape: Number of users B and of history items T.
        asked: Nodes that the step needs, int32 ``[U]``, ascending.
        level_sizes: Number of needed nodes at the root and at each level.
        bags: Positions in ``asked`` of the nodes to sum, int64. First come the nodes of each
            history item, then the nodes chosen before each later level of each target.
        bag_starts: Start of each sum in ``bags``, int64 ``[B * T + M * (L - 1)]``.
        levels: Plan of each level.
        num_targets: Number of targets M.
        weights: Weight of each target in the loss, float32 ``[M]``. None weights all equally.
        histories: Items of the histories, int64 ``[B, T]``, for a retriever that also reads item
            attributes. None otherwise.
        people: ``user_idx`` of each history's user, int64 ``[B]``, -1 for an unknown user. None if
            all users are unknown.
    """

    positions: Tensor
    shape: tuple[int, int]
    asked: Tensor
    level_sizes: list[int]
    bags: Tensor
    bag_starts: Tensor
    levels: list[LevelPlan]
    num_targets: int
    weights: Tensor | None = None
    histories: Tensor | None = None
    people: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Return a copy of the plan on another device."""
        levels = [replace(level, **_sent(level, device)) for level in self.levels]
        return replace(self, **_sent(self, device), levels=levels)


def _sent(plan: StepPlan | LevelPlan, device: torch.device) -> dict[str, Any]:
    """Return the tensors of a plan by name, copied to another device."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {name: send(x, device) for name, x in values.items() if isinstance(x, Tensor)}


class StepPlanner:
    """A planner of training steps, which computes on the host what a step needs from the trie.

    Args:
        trie: Trie of the whole catalogue.
        candidates: Children of each node that compete in training.
        fewest: Minimum number of children from which a target is open, which means that it is
            scored.
        find_seen: Whether to find nodes whose items are all in the history.
        keep_histories: Whether to put the items of the histories into the plans.
    """

    def __init__(
        self,
        trie: Trie,
        candidates: Children,
        *,
        fewest: int,
        find_seen: bool,
        keep_histories: bool = False,
    ) -> None:
        self.trie = trie
        self.starts = candidates.starts.astype(np.int64)
        self.nodes = candidates.nodes
        self.fewest = fewest
        self.find_seen = find_seen
        self.keep_histories = keep_histories
        # Position of each node in the list of candidates, or -1 if it is not in the list.
        self.node_places = np.full(trie.num_nodes, -1, dtype=np.int32)
        self.node_places[self.nodes] = np.arange(len(self.nodes), dtype=np.int32)
        # Scratch arrays: whether a step needs each node, and the position of each needed node.
        self._is_asked = np.zeros(trie.num_nodes, dtype=bool)
        self._asked_places = np.zeros(trie.num_nodes, dtype=np.int64)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this planner itself, so that copies of a retriever share its large trie."""
        return self

    def plan(self, batch: Batch) -> StepPlan:
        """Compute the plan of a batch on the host."""
        histories, positions = batch.histories.numpy(), batch.positions.numpy()
        num_users, length = histories.shape
        paths = self.trie.paths[batch.targets.numpy()].astype(np.int64)  # [M, L]
        parents = np.concatenate([np.zeros_like(paths[:, :1]), paths[:, :-1]], axis=1)
        history_paths = self.trie.paths[histories]  # [B, T, L]
        counts = self.starts[parents + 1] - self.starts[parents]
        is_open = counts >= self.fewest
        candidates = [
            self._candidates(parents[:, i], is_open[:, i], i) for i in range(paths.shape[1])
        ]
        asked = self._ask([history_paths, paths, *(nodes for _, _, nodes in candidates)])
        level_sizes = np.diff(np.searchsorted(asked, self.trie.level_starts))
        firsts = np.cumsum(level_sizes) - level_sizes
        complete = self._find_complete(histories) if self.find_seen else []
        levels = []
        for level, (rows, columns, nodes) in enumerate(candidates):
            chosen = np.flatnonzero(is_open[:, level])
            width = int(counts[chosen, level].max(initial=0))
            local = self._asked_places[nodes] - firsts[level + 1]
            starts = self.starts[parents[chosen, level]]
            seen = np.zeros(0, dtype=np.int64)
            if complete:
                seen = self._find_seen(
                    *complete[level], positions, length, parents[:, level], is_open[:, level], width
                )
            levels.append(
                LevelPlan(
                    open=torch.from_numpy(chosen),
                    rows=torch.from_numpy(rows),
                    nodes=torch.from_numpy(local),
                    places=torch.from_numpy(rows * width + columns),
                    by_node=torch.from_numpy(np.argsort(local, kind="stable") if level else rows),
                    columns=torch.from_numpy(self.node_places[paths[chosen, level]] - starts),
                    seen=torch.from_numpy(seen),
                    parents=torch.from_numpy(parents[chosen, level]),
                    width=width,
                )
            )
        bags, bag_starts = self._bags(history_paths, paths)
        return StepPlan(
            positions=batch.positions,
            shape=(num_users, length),
            asked=torch.from_numpy(asked.astype(np.int32)),
            level_sizes=level_sizes.tolist(),
            bags=torch.from_numpy(bags),
            bag_starts=torch.from_numpy(bag_starts),
            levels=levels,
            num_targets=len(positions),
            weights=batch.weights,
            histories=batch.histories if self.keep_histories else None,
            people=batch.people,
        )

    def _candidates(
        self, parents: Ints, is_open: npt.NDArray[np.bool_], level: int
    ) -> tuple[Ints, Ints, Ints]:
        """Return the row, column and node of each candidate of the open targets.

        At level 0 all targets have the same candidates, so rows and columns are empty.
        """
        if level == 0:
            nodes = self.nodes[: self.starts[1]].astype(np.int64)
            return np.zeros(0, np.int64), np.zeros(0, np.int64), nodes
        parents = parents[is_open]
        starts, counts = self.starts[parents], self.starts[parents + 1] - self.starts[parents]
        rows, columns, flat = ragged(starts, counts)
        return rows, columns, self.nodes[flat].astype(np.int64)

    def _ask(self, parts: list[npt.NDArray[np.integer[Any]]]) -> Ints:
        """Return the different nodes of all parts, ascending, and fill `_asked_places`."""
        for part in parts:
            self._is_asked[part] = True
        asked = np.flatnonzero(self._is_asked)
        self._is_asked[asked] = False
        self._asked_places[asked] = np.arange(len(asked))
        return asked

    def _bags(self, history_paths: npt.NDArray[np.int32], paths: Ints) -> tuple[Ints, Ints]:
        """Return the nodes of every sum of node vectors of a step, and where each sum begins."""
        num_levels = paths.shape[1]
        flat = self._asked_places[history_paths.reshape(-1)]
        starts = [np.arange(0, len(flat), num_levels)]
        bags = [flat]
        local, size = self._asked_places[paths], len(flat)
        for level in range(1, num_levels):
            bags.append(local[:, :level].reshape(-1))
            starts.append(size + np.arange(0, len(bags[-1]), level))
            size += len(bags[-1])
        return np.concatenate(bags), np.concatenate(starts)

    def _find_complete(self, histories: Ints) -> list[tuple[Ints, Ints, Ints]]:
        """Return the complete nodes of each level.

        A node is complete from the history position at which all its items have occurred.

        Returns:
            For each level the user, the node and this position of each complete node.
        """
        num_users, length = histories.shape
        keys = (np.arange(num_users)[:, None] * self.trie.num_items + histories).reshape(-1)
        # Each item of a user counts once, at its first position.
        different, first = np.unique(keys, return_index=True)
        users, items = np.divmod(different, self.trie.num_items)
        positions = first % length
        found = []
        for level in range(self.trie.num_levels):
            nodes = self.trie.paths[items, level]
            sizes = self.trie.leaf_ends[nodes] - self.trie.leaf_starts[nodes]
            kept = sizes <= length
            keys = users[kept] * self.trie.num_nodes + nodes[kept]
            order = np.argsort(keys, kind="stable")
            starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
            counts = np.diff(starts, append=len(order))
            firsts = order[starts] if len(starts) else order
            complete = counts == sizes[kept][firsts]
            last = np.maximum.reduceat(positions[kept][order], starts) if len(starts) else firsts
            found.append(
                (
                    users[kept][firsts][complete],
                    nodes[kept][firsts][complete].astype(np.int64),
                    last[complete],
                )
            )
        return found

    def _find_seen(
        self,
        users: Ints,
        nodes: Ints,
        since: Ints,
        positions: Ints,
        length: int,
        parents: Ints,
        is_open: npt.NDArray[np.bool_],
        width: int,
    ) -> Ints:
        """Return the positions, in a level's flattened table of scores, of complete candidates.

        A candidate is complete if the history up to the target contains all its items.

        Shapes: E nodes that are complete at some position, M targets.

        Args:
            users: User of each complete node ``[E]``.
            nodes: Complete node ``[E]``.
            since: History position from which each node is complete ``[E]``.
            positions: Position of each target in the flattened histories ``[M]``.
            length: Number of history items T.
            parents: Node whose children are each target's candidates ``[M]``.
            is_open: Whether each target is open at this level ``[M]``.
            width: Number of columns of the table.
        """
        starts = np.searchsorted(positions, users * length + since)
        ends = np.searchsorted(positions, (users + 1) * length)
        which, _, targets = ragged(starts, ends - starts)
        columns = self.node_places[nodes[which]] - self.starts[parents[targets]]
        counts = self.starts[parents[targets] + 1] - self.starts[parents[targets]]
        # The children of one node are adjacent, so columns outside 0 … counts - 1 belong to other
        # nodes.
        fits = (columns >= 0) & (columns < counts) & is_open[targets]
        rows = np.cumsum(is_open) - 1
        return rows[targets[fits]] * width + columns[fits]


def ragged(starts: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the row, column and flat position of every entry of ragged slices.

    Slice i has ``counts[i]`` entries and begins at the flat position ``starts[i]``.

    Example:
        >>> [found.tolist() for found in ragged(np.array([5, 0]), np.array([2, 1]))]
        [[0, 0, 1], [0, 1, 0], [5, 6, 0]]
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    columns = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    return rows, columns, starts[rows] + columns
