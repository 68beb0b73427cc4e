"""Fidelity of a tokenizer: the share of an item's nearest neighbours that quantization keeps.

Shapes: N items, D dimensions, L levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Number of nearest neighbours of an item that are compared.
NUM_NEIGHBOURS = 10
# Largest number of items whose neighbours are compared, and of items that can be neighbours. In a
# larger catalogue the items are evenly spread, so that the time does not grow with its size.
NUM_QUERIES, MAX_ITEMS = 500, 65_536


@torch.no_grad()
def measure_fidelity(
    vectors: Tensor, codes: Tensor, decode: Callable[[Tensor], Tensor]
) -> tuple[float, ...]:
    """Measure the share of an item's ten nearest items that remain among them after quantization.

    Entry ``l`` of the result compares the vectors with the vectors that the first ``l + 1`` codes
    decode to. Items with equal codes are equally near. If only some of them are among the ten
    nearest, the result is the expected share of a random choice among them.

    Args:
        vectors: Vectors before quantization, ``[N, D]``.
        codes: Codes of the same items, int64 ``[N, L]``.
        decode: Function from codes ``[n, l]`` of the first ``l`` levels to vectors ``[n, D]``.

    Returns:
        One share per level. All shares are NaN if there are fewer than 12 items.
    """
    num_items, num_levels = codes.shape
    if num_items < NUM_NEIGHBOURS + 2:
        return (float("nan"),) * num_levels
    universe = torch.from_numpy(spread_rows(num_items))
    vectors, codes = vectors[universe].float(), codes[universe]
    queries = torch.from_numpy(spread_rows(len(universe), NUM_QUERIES))
    distances = torch.cdist(vectors[queries], vectors)
    distances[torch.arange(len(queries)), queries] = torch.inf
    nearest = distances.topk(NUM_NEIGHBOURS, largest=False).indices
    is_near = torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, value=True)
    found = []
    for level in range(1, num_levels + 1):
        prefixes, row = torch.unique(codes[:, :level], dim=0, return_inverse=True)
        decoded = decode(prefixes).float()
        # Each prefix is decoded once, so that items with equal codes have exactly equal distances.
        quantized = torch.cdist(decoded[row[queries]], decoded)[:, row]
        quantized[torch.arange(len(queries)), queries] = torch.inf
        last = quantized.topk(NUM_NEIGHBOURS, largest=False).values[:, -1:]
        surely, maybe = quantized < last, quantized == last
        places = (NUM_NEIGHBOURS - surely.sum(dim=1)) / maybe.sum(dim=1)
        kept = (surely & is_near).sum(dim=1) + (maybe & is_near).sum(dim=1) * places
        found.append(kept.double().mean().item() / NUM_NEIGHBOURS)
    return tuple(found)


def spread_rows(num_items: int, most: int | None = None) -> npt.NDArray[np.int64]:
    """Return row numbers that are evenly spread over a catalogue.

    Args:
        num_items: Number of items in the catalogue.
        most: Largest number of rows to return. None uses `MAX_ITEMS`.

    Returns:
        Row numbers in ascending order; all rows if the catalogue has no more than ``most`` items.
    """
    count = min(num_items, MAX_ITEMS if most is None else most)
    return np.arange(count, dtype=np.int64) * num_items // max(1, count)
