"""What a training step asks of the trie, found out on the host before the step begins.

Which nodes a step needs, which children compete for each target and which of them the history holds
already follows from the batch and the trie alone. It is planned here with numpy, so that all shapes
are known when the step runs: an accelerator never has to be waited for.

A node is *complete* from the position on at which a history holds all its items. This is found once
a history, and not anew for each of its targets.

Shapes: B users, T history items, M targets, L levels, U nodes asked for, O open targets, C
candidates of all open targets, E nodes that are complete somewhere.
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
    """The choices of one level: which targets have one, and among which nodes.

    Nodes are places among those of the level that the step asks for. Each open target has a row of
    ``width`` scores, of which some stand for no candidate.

    Args:
        open: int64 ``[O]``, the targets that have a choice.
        rows: int64 ``[C]``, the open target of each candidate, ascending.
        nodes: int64 ``[C]``, the candidates; at level 0 ``[width]``, the same for all targets.
        places: int64 ``[C]``, where each stands in the table of scores ``[O * width]``.
        by_node: int64 ``[C]``, the candidates in the order of their nodes.
        columns: int64 ``[O]``, the column of the right candidate.
        seen: int64, places in the table of scores of nodes that the history holds all of.
        parents: int32 ``[O]``, the node that is left.
        width: Most candidates of a target.
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
    """A batch and what its step asks of the trie.

    Args:
        positions: int64 ``[M]``, supervised positions of the flattened histories.
        shape: B and T.
        asked: int32 ``[U]``, the nodes that the step needs, ascending.
        level_sizes: How many of them there are of the root and of each level.
        bags: int64, places among ``asked`` of the nodes that are added up: those of each history
            item, then those chosen before each later level of each target.
        bag_starts: int64 ``[B * T + M * (L - 1)]``, where each sum begins in ``bags``.
        levels: One plan per level.
        num_targets: M.
        weights: float32 ``[M]``, what each target counts in the loss; None where all count alike.
        histories: int64 ``[B, T]``, for a retriever that reads more of items than their nodes; else
            None.
        people: int64 ``[B]``, whose histories they are; None where nobody knows.
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
        """The same on another device."""
        levels = [replace(level, **_sent(level, device)) for level in self.levels]
        return replace(self, **_sent(self, device), levels=levels)


def _sent(plan: StepPlan | LevelPlan, device: torch.device) -> dict[str, Any]:
    """The tensors of a plan by name, on another device."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {name: send(x, device) for name, x in values.items() if isinstance(x, Tensor)}


class StepPlanner:
    """Plans the steps of one retriever.

    Args:
        trie: Of the whole catalogue.
        candidates: The children of each node that training chooses from.
        fewest: Children from which on there is a choice.
        find_seen: Look for nodes that a history holds all of.
        keep_histories: Put the items of the histories into the plans.
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
        # Where each node stands among the candidates; -1 for none of them.
        self.node_places = np.full(trie.num_nodes, -1, dtype=np.int32)
        self.node_places[self.nodes] = np.arange(len(self.nodes), dtype=np.int32)
        # Scratch: which nodes a step asks for, and where they stand among them.
        self._is_asked = np.zeros(trie.num_nodes, dtype=bool)
        self._asked_places = np.zeros(trie.num_nodes, dtype=np.int64)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a copy of a retriever plans alike, and the trie is large."""
        return self

    def plan(self, batch: Batch) -> StepPlan:
        """The plan of a batch on the host."""
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
        """Row, column and node of each candidate of the open targets; at level 0 only nodes."""
        if level == 0:
            nodes = self.nodes[: self.starts[1]].astype(np.int64)
            return np.zeros(0, np.int64), np.zeros(0, np.int64), nodes
        parents = parents[is_open]
        starts, counts = self.starts[parents], self.starts[parents + 1] - self.starts[parents]
        rows, columns, flat = ragged(starts, counts)
        return rows, columns, self.nodes[flat].astype(np.int64)

    def _ask(self, parts: list[npt.NDArray[np.integer[Any]]]) -> Ints:
        """All nodes of the parts, ascending and each once; `_asked_places` then knows where."""
        for part in parts:
            self._is_asked[part] = True
        asked = np.flatnonzero(self._is_asked)
        self._is_asked[asked] = False
        self._asked_places[asked] = np.arange(len(asked))
        return asked

    def _bags(self, history_paths: npt.NDArray[np.int32], paths: Ints) -> tuple[Ints, Ints]:
        """The nodes of every sum of node vectors of a step, and where each sum begins."""
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
        """Users, nodes and the position from which on each node is complete, for each level."""
        num_users, length = histories.shape
        keys = (np.arange(num_users)[:, None] * self.trie.num_items + histories).reshape(-1)
        # Each item of a user once, where it stands first.
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
        """Places in a level's table of scores of candidates that are complete at their target.

        Args:
            users: ``[E]``, whose node is complete,
            nodes: ``[E]``, which it is, and
            since: ``[E]``, the position from which on it is.
            positions: ``[M]``, of the targets in the flattened histories.
            length: T.
            parents: ``[M]``, the node that each target has come to.
            is_open: ``[M]``, whether it has a choice there.
            width: Columns of the table.
        """
        starts = np.searchsorted(positions, users * length + since)
        ends = np.searchsorted(positions, (users + 1) * length)
        which, _, targets = ragged(starts, ends - starts)
        columns = self.node_places[nodes[which]] - self.starts[parents[targets]]
        counts = self.starts[parents[targets] + 1] - self.starts[parents[targets]]
        # The children of one node follow one another: others lie before or behind them.
        fits = (columns >= 0) & (columns < counts) & is_open[targets]
        rows = np.cumsum(is_open) - 1
        return rows[targets[fits]] * width + columns[fits]


def ragged(starts: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Row, column and flat position of every entry of slices ``starts[i] + 0 … counts[i]``.

    Example:
        >>> [found.tolist() for found in ragged(np.array([5, 0]), np.array([2, 1]))]
        [[0, 0, 1], [0, 1, 0], [5, 6, 0]]
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    columns = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    return rows, columns, starts[rows] + columns
