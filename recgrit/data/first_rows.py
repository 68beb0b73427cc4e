"""Which row of a user or item is its first: their final indices follow that order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

Indices = npt.NDArray[np.int64]

# Rows looked at in one go: they stay in the processor's cache, and after the first of them most
# users and items are known.
SLICE = 2**18


class FirstRows:
    """The first row of each user or item, over all partitions.

    Args:
        num_codes: Number of users or items.
    """

    def __init__(self, num_codes: int) -> None:
        self._is_known = np.zeros(num_codes, np.bool_)
        # The place of each code's first row so far.
        self._first = np.empty(num_codes, np.int64)
        # For the partition that is looked at; as it is now between partitions.
        self._is_new = np.ones(num_codes, np.bool_)
        self._places = np.empty(num_codes, np.int32)

    def add(self, codes: npt.NDArray[np.int32], rows: pl.DataFrame) -> None:
        """Look at the rows of a partition, in order, with the code of each.

        They are all there are where no column ``row`` tells their place among others.
        """
        first = self._find_first(codes)
        codes = codes[first]
        found = rows["row"].to_numpy()[first] if "row" in rows.columns else first
        is_earlier = ~self._is_known[codes] | (found < self._first[codes])
        self._first[codes[is_earlier]] = found[is_earlier]
        self._is_known[codes] = True

    def in_order(self) -> Indices:
        """The codes that have a row, by it."""
        codes = np.flatnonzero(self._is_known)
        return codes[np.argsort(self._first[codes], kind="stable")]

    def _find_first(self, codes: npt.NDArray[np.int32]) -> Indices:
        """Where in a partition each of its codes stands first."""
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
    """Where in an array each of its numbers stands first.

    Args:
        numbers: From 0 on.
        places: Longer than the largest number; what stands there for these numbers is lost.
    """
    place = np.arange(len(numbers), dtype=np.int32)
    # Written from the last to the first, the first stays.
    places[numbers[::-1]] = place[::-1]
    return np.flatnonzero(places[numbers] == place)
