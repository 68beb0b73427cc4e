"""The tree of semantic IDs that a page draws, with typical tags and example items of each prefix.

All first codes are drawn. Prefixes of two codes are drawn as far as a browser can draw them, and
below them a sample of items. One node stands for everything that is left out at a place, so that
areas stay proportional to numbers of items.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.reporting.tags import Tags, color_tags, typical_tags
from recgrit.semantic_ids.table import SemanticIdTable, format_semantic_id
from recgrit.semantic_ids.trie import Trie, build_trie

# All prefixes of two codes are drawn if there are at most MAX_PREFIXES. Otherwise only the
# LARGEST_PREFIXES with the most items are drawn.
MAX_PREFIXES = 8_000
LARGEST_PREFIXES = 2_500
MAX_ITEMS = 6_000
NUM_EXAMPLES = 3
LONGEST_TITLE = 56

NO_COLOR = -1


@dataclass(frozen=True)
class TreeNode:
    """One node of the drawn tree.

    Args:
        parent: Position of the parent among the nodes; -1 for the root.
        prefix: Codes of the node as text. Empty for the root and for nodes that stand for what was
            left out.
        label: Most typical tag of the node, title of its item, or number of items and prefixes that
            were left out.
        num_items: Number of items below the node.
        color: Position among the tree's colours, or `NO_COLOR`.
        typical: Typical tags with their shares and lifts, as text.
        examples: Titles of the items below with the most interactions.
    """

    parent: int
    prefix: str
    label: str
    num_items: int
    color: int = NO_COLOR
    typical: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class IdTree:
    """The drawn tree of IDs, and the meaning of its colours.

    Args:
        nodes: All nodes, parents before their children, the root first.
        colors: Tag of each colour.
        field: Column that the tags come from, such as ``genres``.
        num_first: Number of first codes in use.
        num_prefixes: Number of prefixes of two codes in use.
        num_prefixes_shown: Number of these prefixes that have a node of their own.
        num_items_shown: Number of items that have a node of their own.
    """

    nodes: tuple[TreeNode, ...]
    colors: tuple[str, ...]
    field: str
    num_first: int
    num_prefixes: int
    num_prefixes_shown: int
    num_items_shown: int


@dataclass
class _Words:
    """Typical tags, labels, colours and example items, by node number of the trie."""

    typical: dict[int, str] = field(default_factory=dict)
    label: dict[int, str] = field(default_factory=dict)
    color: dict[int, int] = field(default_factory=dict)
    examples: dict[int, list[int]] = field(default_factory=dict)


def shorten(title: str) -> str:
    """Return a title that has at most `LONGEST_TITLE` characters. A longer title ends with "…".

    Example:
        >>> shorten("x" * 57)[-2:]
        'x…'
    """
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1].rstrip() + "…"


def build_tree(table: SemanticIdTable, tags: Tags, counts: npt.NDArray[np.int64]) -> IdTree:
    """Build the tree of a catalogue's IDs.

    Args:
        table: ID table of all items.
        tags: Tags of the items.
        counts: Number of interactions of each item, int64 ``[N]`` for N items. Items with the most
            interactions are the examples.
    """
    trie = build_trie(table.codes)
    depth = 2 if table.id_length > 1 and table.disambiguation_level != 1 else 1
    words = _describe(trie, depth, tags, counts)
    own_color = _item_colors(tags)
    titles = table.titles.to_list()
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))  # 0 for the item with the most interactions.
    firsts = np.arange(trie.level_starts[1], trie.level_starts[2])
    prefixes = np.arange(trie.level_starts[depth], trie.level_starts[depth + 1])
    few = len(prefixes) <= MAX_PREFIXES
    kept = _largest(trie, prefixes, len(prefixes) if few else LARGEST_PREFIXES)
    per_prefix = _items_per_prefix(trie, np.flatnonzero(kept), MAX_ITEMS)

    nodes = [TreeNode(-1, "", "all items", trie.num_items)]
    shown_items = 0

    def add_items(node: int, parent: int) -> None:
        nonlocal shown_items
        items = trie.leaf_items[trie.leaf_starts[node] : trie.leaf_ends[node]]
        items = items[np.argsort(place[items])]
        for item in items[:per_prefix]:
            color = words.color.get(node, NO_COLOR)
            mine = own_color.get(int(item), [])
            nodes.append(
                TreeNode(
                    parent,
                    format_semantic_id(table.codes[item].tolist()),
                    shorten(titles[item]),
                    1,
                    color if color in mine or not mine else mine[0],
                )
            )
        shown_items += min(per_prefix, len(items))
        if len(items) > per_prefix:
            left = len(items) - per_prefix
            nodes.append(
                TreeNode(parent, "", f"{left:,} more {'item' if left == 1 else 'items'}", left)
            )

    def add_node(node: int, parent: int, depth_of_node: int) -> int:
        item = int(trie.leaf_items[trie.leaf_starts[node]])
        size = int(trie.leaf_ends[node] - trie.leaf_starts[node])
        examples = tuple(shorten(titles[i]) for i in words.examples[node])
        nodes.append(
            TreeNode(
                parent,
                format_semantic_id(table.codes[item, :depth_of_node].tolist()),
                words.label.get(node, examples[0]) if size > 1 else examples[0],
                size,
                words.color.get(node, NO_COLOR),
                words.typical.get(node, "") if size > 1 else "",
                examples if size > 1 else (),
            )
        )
        return len(nodes) - 1

    # Nodes are sorted by colour, so that neighbouring tiles of one colour form a visible region.
    for first in sorted(firsts, key=lambda v: (words.color.get(v, 99), -_size(trie, v))):
        at = add_node(int(first), 0, 1)
        if depth == 1:
            if _size(trie, first) > 1:
                add_items(int(first), at)
            continue
        children = np.arange(trie.child_starts[first], trie.child_starts[first + 1])
        for child in children[kept[children]]:
            below = add_node(int(child), at, 2)
            if _size(trie, child) > 1:
                add_items(int(child), below)
            else:
                shown_items += 1
        left = children[~kept[children]]
        if len(left):
            num_left = int(sum(_size(trie, v) for v in left))
            label = (
                f"{len(left):,} more {'prefix' if len(left) == 1 else 'prefixes'}, "
                f"{num_left:,} {'item' if num_left == 1 else 'items'}"
            )
            nodes.append(TreeNode(at, "", label, num_left))
    return IdTree(
        nodes=tuple(nodes),
        colors=tuple(color_tags(tags)),
        field=tags.field,
        num_first=len(firsts),
        num_prefixes=len(prefixes),
        num_prefixes_shown=int(kept.sum()),
        num_items_shown=shown_items,
    )


def _size(trie: Trie, node: int | np.int64) -> int:
    return int(trie.leaf_ends[node] - trie.leaf_starts[node])


def _largest(trie: Trie, nodes: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.bool_]:
    """Mark the nodes of the trie that have the most items.

    Args:
        trie: The trie of all IDs.
        nodes: Node numbers to choose from.
        limit: Number of nodes to mark.

    Returns:
        Whether each node of the trie is marked, bool.
    """
    sizes = trie.leaf_ends[nodes] - trie.leaf_starts[nodes]
    kept = np.zeros(trie.num_nodes, dtype=np.bool_)
    kept[nodes[np.argsort(-sizes, kind="stable")[:limit]]] = True
    return kept


def _items_per_prefix(trie: Trie, prefixes: npt.NDArray[np.int64], limit: int) -> int:
    """Return how many items each prefix may show, so that at most ``limit`` are shown in total.

    The number is at least one.
    """
    sizes = trie.leaf_ends[prefixes] - trie.leaf_starts[prefixes]
    sizes = sizes[sizes > 1]
    low, high = 1, int(sizes.max(initial=1))
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def _describe(trie: Trie, depth: int, tags: Tags, counts: npt.NDArray[np.int64]) -> _Words:
    colors = color_tags(tags)
    of_colors = Tags(tags.field, tags.pairs.filter(pl.col("tag").is_in(colors)), tags.num_items)
    words = _Words()
    item_idx = np.arange(trie.num_items, dtype=np.int32)
    for level in range(depth):
        groups = pl.DataFrame({"item_idx": item_idx, "group": trie.paths[:, level]})
        for node, tag, share, lift in typical_tags(tags, groups).iter_rows():
            words.label.setdefault(node, tag)
            text = f"{tag} {share:.0%} (×{lift:.{0 if lift >= 10 else 1}f})"
            words.typical[node] = " · ".join(filter(None, (words.typical.get(node), text)))
        for node, tag, _, _ in typical_tags(of_colors, groups, limit=1).iter_rows():
            words.color[node] = colors.index(tag)
        examples = (
            groups.with_columns(count=pl.Series(counts))
            .sort(["group", "count"], descending=[False, True], maintain_order=True)
            .group_by("group", maintain_order=True)
            .head(NUM_EXAMPLES)
        )
        for node, item in examples.select("group", "item_idx").iter_rows():
            words.examples.setdefault(node, []).append(item)
    return words


def _item_colors(tags: Tags) -> dict[int, list[int]]:
    """Return the colours that each item may have, best first, without items that have none."""
    places = {tag: place for place, tag in enumerate(color_tags(tags))}
    found: dict[int, list[int]] = {}
    for item, tag in tags.pairs.filter(pl.col("tag").is_in(list(places))).iter_rows():
        found.setdefault(item, []).append(places[tag])
    return {item: sorted(colors) for item, colors in found.items()}
