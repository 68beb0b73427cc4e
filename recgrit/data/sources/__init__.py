"""Data sources by name, with one small module per family of published formats.

A source only reads files. Filters, dense ids and splits are the same for all sources and are in
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

# Name of the source of a user's own files. It needs settings, so it is not in SOURCES.
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

# Families of sources whose file names contain a category. A source is named 'family/Category'.
SOURCE_FAMILIES: dict[str, Callable[[str], Source]] = {
    f"amazon{year}": partial(Amazon, year) for year in EDITIONS
}


def load_source(name: str) -> Source:
    """Return the source of a name, for example ``movielens-100k`` or ``amazon2014/Beauty``.

    Raises:
        ConfigError: There is no such source. The message lists the existing sources.
    """
    if name in SOURCES:
        return SOURCES[name]
    family, _, category = name.partition("/")
    if family in SOURCE_FAMILIES and category:
        # Only published categories are accepted, because they become part of paths and addresses.
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
    """Return the source of a name, with the settings that apply to it.

    Args:
        name: Name of the source, as for `load_source`, or ``table``.
        table: Source that is returned for ``table``. Its time settings are also used for
            ``recbole``.
        movie_tags: Largest number of tags of a movie, which become a further column of the items. 0
            adds no tags.

    Raises:
        ConfigError: There is no such source, or the source has no tags.
    """
    if name == TABLE:
        return table
    source = RecBole(table.times) if name == "recbole" else load_source(name)
    return with_tags(source, name, movie_tags) if movie_tags else source
