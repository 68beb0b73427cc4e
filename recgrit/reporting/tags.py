"""Tags that describe items, such as genres or words, and the tags that are typical of a group."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from recgrit.data.items import ItemTable

WORDS_OF_TITLE = "words of the title"
# Columns that tags are read from. The first one that the source has is used.
TAG_FIELDS = ("genres", "categories")
# A text column is used for tags if it has at most this many different values per item.
MAX_VALUE_SHARE = 0.5
MIN_WORD_LENGTH = 3

# A tag that a larger share of items has gets no colour, because it does not separate groups.
MAX_COLOR_SHARE = 0.6
NUM_COLORS = 9


@dataclass(frozen=True)
class Tags:
    """The tags of items, as pairs of item and tag.

    Args:
        field: Column of the item table that the tags come from, or ``words of the title``.
        pairs: Columns ``item_idx`` int32 and ``tag`` str, without repeated pairs.
        num_items: Number of items in the catalogue.
    """

    field: str
    pairs: pl.DataFrame
    num_items: int


def read_tags(items: ItemTable) -> Tags:
    """Return the tags of a catalogue.

    Tags come from a column of lists, such as genres or categories. If there is no such column, they
    come from the text column with the fewest different values, such as a brand. If there is none
    either, they are the words of titles.
    """
    frame = items.frame.with_row_index("item_idx").cast({"item_idx": pl.Int32})
    lists = [name for name, dtype in items.frame.schema.items() if dtype == pl.List(pl.String)]
    fields = [name for name in (*TAG_FIELDS, *lists) if name in lists]
    field = next((name for name in fields if frame[name].drop_nulls().list.len().sum()), None)
    if field is not None:
        pairs = frame.select("item_idx", pl.col(field).alias("tag")).explode("tag")
    elif (field := _fewest_values(items)) is not None:
        pairs = frame.select("item_idx", pl.col(field).alias("tag"))
    else:
        field = WORDS_OF_TITLE
        words = pl.col("title").str.to_lowercase().str.extract_all(r"[\p{L}][\p{L}'’-]+")
        pairs = frame.select("item_idx", words.alias("tag")).explode("tag")
        pairs = pairs.filter(pl.col("tag").str.len_chars() >= MIN_WORD_LENGTH)
    pairs = pairs.drop_nulls().filter(pl.col("tag") != "").unique(maintain_order=True)
    return Tags(field, pairs, len(items))


def _fewest_values(items: ItemTable) -> str | None:
    counts = {
        name: items.frame[name].drop_nulls().n_unique()
        for name, dtype in items.frame.schema.items()
        if dtype == pl.String and name not in ("item_id", "title")
    }
    usable = {name: n for name, n in counts.items() if 1 < n <= MAX_VALUE_SHARE * len(items)}
    return min(usable, key=lambda name: usable[name]) if usable else None


def typical_tags(tags: Tags, groups: pl.DataFrame, *, limit: int = 3) -> pl.DataFrame:
    """Return the tags that distinguish each group of items from the whole catalogue.

    Tags are ranked by ``share * log(lift)``. The lift is the tag's share in the group divided by
    its share in the catalogue. A tag that all items have therefore gets zero, and a rare tag of one
    item ranks below a tag that most of the group has.

    Args:
        tags: Tags of the catalogue.
        groups: Columns ``item_idx`` int32 and ``group``, with one row per item of a group.
        limit: Largest number of tags per group.

    Returns:
        Columns ``group``, ``tag``, ``share``, ``lift``, best first within a group. Tags that are
        not more frequent in the group than in the catalogue are left out.
    """
    sizes = groups.group_by("group").len("size")
    overall = tags.pairs.group_by("tag").len("total")
    counted = (
        groups.join(tags.pairs, on="item_idx")
        .group_by("group", "tag")
        .len("count")
        .join(sizes, on="group")
        .join(overall, on="tag")
        .with_columns(share=pl.col("count") / pl.col("size"))
        .with_columns(lift=pl.col("share") / (pl.col("total") / tags.num_items))
        .with_columns(score=pl.col("share") * pl.col("lift").log())
        .filter(pl.col("score") > 0)
    )
    return (
        counted.sort(["group", "score", "tag"], descending=[False, True, False])
        .group_by("group", maintain_order=True)
        .head(limit)
        .select("group", "tag", "share", "lift")
    )


def color_tags(tags: Tags) -> list[str]:
    """Return a few tags to colour items by, which together cover as many items as possible.

    They are chosen greedily: each tag covers the most items that are not covered yet.
    """
    counts = tags.pairs.group_by("tag").len("total")
    usable = counts.filter(pl.col("total") <= MAX_COLOR_SHARE * tags.num_items)["tag"]
    left = tags.pairs.filter(pl.col("tag").is_in(usable.implode()))
    chosen: list[str] = []
    while len(chosen) < NUM_COLORS and left.height:
        ranked = left.group_by("tag").len("total").sort(["total", "tag"], descending=[True, False])
        tag = str(ranked["tag"][0])
        chosen.append(tag)
        covered = left.filter(pl.col("tag") == tag)["item_idx"]
        left = left.filter(pl.col("item_idx").is_in(covered.implode()).not_())
    return chosen
