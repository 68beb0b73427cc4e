"""Reader of the tags of MovieLens, which become a further column of the items.

Releases from 10M on have tags. A movie gets the tags that most users gave it, without regard to
letter case. Tags with equally many users are ordered by their first line in the file. Tags are item
features that users made. A tag may be younger than an interaction that is predicted, as any text of
a present-day catalogue may be.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recgrit.data.sources.cleaning import clean_text, refuse_malformed
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.movielens import COMMAS, MovieLens
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import (
    RawFile,
    decode,
    find_files,
    read_files,
    require_header,
    split_lines,
)
from recgrit.errors import ConfigError

logger = logging.getLogger(__name__)

TAG_FIELDS = "userId,movieId,tag,timestamp"


@dataclass(frozen=True)
class TaggedMovieLens:
    """A MovieLens source whose items have a column ``tags``, with the most frequent tag first.

    Args:
        release: Source of the ratings and movies.
        num_tags: Largest number of tags of a movie.
    """

    release: MovieLens
    num_tags: int

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        *files, tags = self._files
        return f"{', '.join(files)} and {tags}, or {self.release.archive}"

    @property
    def _has_header(self) -> bool:
        return self.release.layout is COMMAS

    @property
    def _files(self) -> tuple[str, ...]:
        return (*self.release.layout.files, "tags.csv" if self._has_header else "tags.dat")

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the files of ratings, movies and tags, or the archive that holds them.

        Raises:
            DataError: The files do not exist.
        """
        return find_files(
            path, (self._files,), self.expected, self.release.archive, self.release.folder
        )

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the ratings, the movies and the tags."""
        in_folder = files[0].suffix != ".zip"
        raw = self.release.read(files[:2] if in_folder else files, max_malformed_share, coder)
        wanted = self._files[2:]
        file = read_files(files[2:] if in_folder else files, (wanted,))[wanted[0]]
        tags = self._read_tags(file, max_malformed_share)
        items = raw.items.join(tags, on="item_id", how="left", maintain_order="left")
        return dataclasses.replace(raw, items=items, files=files)

    def _read_tags(self, file: RawFile, max_malformed_share: float) -> pl.DataFrame:
        """Return a table of ``item_id`` and the most frequent ``tags`` of each movie."""
        lines = split_lines(decode(file))
        if self._has_header:
            lines = require_header(file, lines, TAG_FIELDS)
        schema = {"line": pl.Int64, "user_id": pl.String, "item_id": pl.String, "tag": pl.String}
        rows = pl.DataFrame(list(self._split(lines)), schema=schema, orient="row")
        refuse_malformed(
            rows.filter(pl.col("user_id").is_null())["line"],
            rows.height,
            file.label,
            TAG_FIELDS if self._has_header else TAG_FIELDS.replace(",", "::"),
            max_malformed_share,
        )
        if num_empty := rows.filter(pl.any_horizontal(pl.all().is_null())).height:
            logger.warning("%s: %d of %d lines hold no tag", file.label, num_empty, rows.height)
        counted = (
            rows.drop_nulls()
            .group_by("item_id", "tag", maintain_order=True)
            .agg(pl.col("user_id").n_unique().alias("count"), pl.col("line").min())
            .sort("count", "line", descending=[True, False])
        )
        return counted.group_by("item_id", maintain_order=True).agg(
            pl.col("tag").head(self.num_tags).alias("tags")
        )

    def _split(
        self, lines: pl.DataFrame
    ) -> Iterator[tuple[int, str | None, str | None, str | None]]:
        for line, text in lines.iter_rows():
            try:
                # Each line is parsed alone, so that a stray quote damages one tag only.
                fields = next(csv.reader([text])) if self._has_header else text.split("::")
            except csv.Error:
                fields = []
            if len(fields) != 4 or not fields[0].strip() or not fields[1].strip():
                yield line, None, None, None
                continue
            tag = clean_text(fields[2])
            yield line, fields[0].strip(), fields[1].strip(), tag.lower() if tag else None


def with_tags(source: object, name: str, num_tags: int) -> TaggedMovieLens:
    """Return a source whose items also have tags.

    Args:
        source: Source without tags.
        name: Name of the source.
        num_tags: Largest number of tags of a movie.

    Raises:
        ConfigError: The source has no tags.
    """
    if not isinstance(source, MovieLens) or name == "movielens-1m":
        raise ConfigError(
            f"data.movie_tags is {num_tags}, but {name} has no tags: MovieLens has them from "
            "movielens-10m on. Set data.movie_tags=0."
        )
    return TaggedMovieLens(source, num_tags)
