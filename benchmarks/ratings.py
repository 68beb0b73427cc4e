"""Write synthetic ratings of any size in MovieLens' official format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

HEADER = b"userId,movieId,rating,timestamp\n"
CHUNK = 1_000_000
# First and last time of MovieLens-25M (1995 to 2019), and the seconds within which a user rates.
FIRST, LAST, SITTING = 789_652_009, 1_574_327_703, 30_000


def write_ratings(
    folder: Path, *, rows: int, users: int, items: int, seed: int = 0, as_log: bool = False
) -> None:
    """Write ``ratings.csv`` and ``movies.csv``.

    As in the official files, the rows are grouped by user, and a user's movies are in the order of
    their ids. Each user rates a movie once. The lengths of histories have a geometric tail. Some
    movies are far more common than others, and many are too rare for the 5-core. Equal arguments
    give equal files.

    Args:
        folder: Existing folder of the two files.
        rows: Exact number of ratings.
        users: Approximate number of users.
        items: Number of movies to draw from. Their ids have gaps.
        seed: Seed of all draws.
        as_log: True writes the rows in the order of their times, with a random user at each time.
    """
    draw = np.random.default_rng(seed)
    mean = rows / users
    shortest = max(1, int(mean / 2))
    written, first_user = 0, 1
    with (folder / "ratings.csv").open("wb") as stream:
        stream.write(HEADER)
        while written < rows:
            num_users = max(1, int(CHUNK / mean))
            lengths = shortest - 1 + draw.geometric(1 / (1.05 * mean - shortest + 1), num_users)
            user = np.repeat(np.arange(num_users), lengths)
            item = (items * draw.random(len(user)) ** 2.5).astype(np.int64)
            user, item = np.divmod(np.unique(user * items + item), items)
            start = draw.integers(FIRST, LAST, num_users)
            chunk = pl.DataFrame(
                {
                    "user": user + first_user,
                    "item": 3 * item + 1,
                    "rating": draw.integers(1, 11, len(user)) / 2,
                    "time": start[user] + draw.integers(0, SITTING, len(user)),
                }
            )[: rows - written]
            if as_log:
                step = (LAST - FIRST) / rows
                chunk = chunk.with_columns(
                    pl.Series("user", draw.integers(1, users + 1, chunk.height)),
                    pl.Series("item", draw.permutation(chunk["item"].to_numpy())),
                    time=(FIRST + step * pl.int_range(written, written + pl.len())).cast(pl.Int64),
                )
            chunk.write_csv(stream, include_header=False, float_precision=1)
            written, first_user = written + chunk.height, first_user + num_users
    names = pl.select((3 * pl.int_range(items) + 1).alias("movieId")).with_columns(
        title=pl.format("Movie {} (1995)", "movieId"), genres=pl.lit("Comedy|Drama")
    )
    names.write_csv(folder / "movies.csv")
