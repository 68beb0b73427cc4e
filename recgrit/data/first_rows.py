"""Search for the first row of each user and item.

Users and items get their final indices in the order of their first rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

Indices = npt.NDArray[np.int64]

# Number of rows that are processed at a time. They fit into the processor's cache, and after the
# first such slice most users and items are known.
SLICE = 2**18


class FirstRows:
    """A record of the first row of each user or item, over all partitions.

    Args:
        num_codes: Number of users or items.
    """

    def __init__(self, num_codes: int) -> None:
        self._is_known = np.zeros(num_codes, np.bool_)
        # Position of each code's first row among the rows added so far.
        self._first = np.empty(num_codes, np.int64)
        # True for codes that the current partition has not shown yet. All True between partitions.
        self._is_new = np.ones(num_codes, np.bool_)
        self._places = np.empty(num_codes, np.int32)

    def add(self, codes: npt.NDArray[np.int32], rows: pl.DataFrame) -> None:
        """Record the rows of one partition.

        Args:
            codes: Code of the user or item of each row.
            rows: Rows of the partition, in order. The column ``row`` holds their positions among
                the rows of all partitions. Without this column the partition must be the only one.
        """
        first = self._find_first(codes)
        codes = codes[first]
        found = rows["row"].to_numpy()[first] if "row" in rows.columns else first
        is_earlier = ~self._is_known[codes] | (found < self._first[codes])
        self._first[codes[is_earlier]] = found[is_earlier]
        self._is_known[codes] = True

    def in_order(self) -> Indices:
        """Return the codes that have a row, in the order of their first rows."""
        codes = np.flatnonzero(self._is_known)
        return codes[np.argsort(self._first[codes], kind="stable")]

    def _find_first(self, codes: npt.NDArray[np.int32]) -> Indices:
        """Return the position within the partition at which each code first occurs."""
        found = [np.empty(0, np.int64)]
        for start in range(0, len(codes), SLICE):
            part = codes[start : start + SLICE]
            new = np.flatnonzero(self._is_new[part])
            if len(new):
                new = new[find_first(part[new], self._places)]
                self._is_new[part[new]] = False
                found.append(start + new)
        first = np.concatenate(found)
        self._is_new[codes[first]] = True
        return first


def find_first(numbers: npt.NDArray[np.integer], places: npt.NDArray[np.int32]) -> Indices:
    """Return the position at which each number first occurs in an array, in ascending order.

    Args:
        numbers: Array of numbers from 0 on.
        places: Working memory, longer than the largest number. Its entries at these numbers are
            overwritten.
    """
    place = np.arange(len(numbers), dtype=np.int32)
    # Positions are written from the last to the first, so the first position of a number stays.
    places[numbers[::-1]] = place[::-1]
    return np.flatnonzero(places[numbers] == place)
