"""Data sources by name: one small file per family of published formats.

A source only reads: filters, dense ids and splits are the same for all and live in
`recgrit.data.prepare`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from recgrit.data.categories import AMAZON_CATEGORIES
from recgrit.data.sources.amazon import EDITIONS, Amazon
from recgrit.data.sources.movielens import COLONS, COMMAS, MovieLens, MovieLens100K
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData, Source
from recgrit.data.sources.recbole import RecBole
from recgrit.data.sources.sequences import Sequences
from recgrit.data.sources.table import Table
from recgrit.data.sources.tags import with_tags
from recgrit.errors import ConfigError

__all__ = [
    "DEFAULT_MAX_MALFORMED_SHARE",
    "SOURCES",
    "SOURCE_FAMILIES",
    "TABLE",
    "RawData",
    "Source",
    "build_source",
    "load_source",
]

# The source whose columns are settings, so that its name alone does not make it.
TABLE = "table"

SOURCES: dict[str, Source] = {
    "movielens-100k": MovieLens100K(),
    "movielens-1m": MovieLens("ml-1m.zip", COLONS),
    "movielens-10m": MovieLens("ml-10m.zip", COLONS, folder="ml-10M100K"),
    "movielens-20m": MovieLens("ml-20m.zip", COMMAS),
    "movielens-25m": MovieLens("ml-25m.zip", COMMAS),
    "movielens-32m": MovieLens("ml-32m.zip", COMMAS),
    "movielens-latest": MovieLens("ml-latest.zip", COMMAS),
    "movielens-latest-small": MovieLens("ml-latest-small.zip", COMMAS),
    "recbole": RecBole(),
    "sequences": Sequences(),
}

# Families whose files carry a category in their names: 'family/Category' names one source.
SOURCE_FAMILIES: dict[str, Callable[[str], Source]] = {
    f"amazon{year}": partial(Amazon, year) for year in EDITIONS
}


def load_source(name: str) -> Source:
    """The source of this name, for example ``movielens-100k`` or ``amazon2014/Beauty``.

    Raises:
        ConfigError: There is no such source; lists those there are.
    """
    if name in SOURCES:
        return SOURCES[name]
    family, _, category = name.partition("/")
    if family in SOURCE_FAMILIES and category:
        # The category becomes part of file names and addresses: only those published are used.
        categories = AMAZON_CATEGORIES[family]
        if category in categories:
            return SOURCE_FAMILIES[family](category)
        close = difflib.get_close_matches(category, categories, n=1, cutoff=0.5)
        raise ConfigError(
            f"{family} has no category {category!r}."
            + (f" Did you mean data.source={family}/{close[0]}?" if close else "")
            + f" There are: {', '.join(categories)}."
        )
    known = [*SOURCES, TABLE, *(f"{family}/<Category>" for family in SOURCE_FAMILIES)]
    raise ConfigError(
        f"Unknown data source {name!r}. Set data.source to one of: {', '.join(known)} "
        "(for example amazon2014/Beauty or amazon2014/Sports_and_Outdoors)."
    )


def build_source(name: str, *, table: Table, movie_tags: int = 0) -> Source:
    """The source of a name and of what else is set.

    Args:
        name: As for `load_source`, or ``table``.
        table: The source that ``table`` means; what it knows of times counts for ``recbole`` too.
        movie_tags: Tags of a movie at most, as one more field of the items; 0 for none.

    Raises:
        ConfigError: There is no such source, or it has no tags.
    """
    if name == TABLE:
        return table
    source = RecBole(table.times) if name == "recbole" else load_source(name)
    return with_tags(source, name, movie_tags) if movie_tags else source
