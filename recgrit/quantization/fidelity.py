"""Fidelity: how many of an item's nearest neighbours quantization keeps.

Shapes: N items, D dimensions, L levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Neighbours of an item that are compared.
NUM_NEIGHBOURS = 10
# Items whose neighbours are compared, and items among which they are sought: evenly spread over the
# catalogue where it has more, so that the time does not grow with it.
NUM_QUERIES, MAX_ITEMS = 500, 65_536


@torch.no_grad()
def measure_fidelity(
    vectors: Tensor, codes: Tensor, decode: Callable[[Tensor], Tensor]
) -> tuple[float, ...]:
    """Share of the ten nearest items that are among the ten nearest after quantization, by level.

    Entry ``l`` compares the vectors with what their first ``l + 1`` codes decode to. Items of equal
    codes are equally near: where they do not all fit among the ten, the share is the expected one
    of a random choice.

    Args:
        vectors: What was quantized, ``[N, D]``.
        codes: Of the same items, int64 ``[N, L]``.
        decode: Vectors ``[n, D]`` of codes ``[n, l]`` of the first ``l`` levels.

    Returns:
        One share per level; NaN each where there are fewer than 12 items.
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
        # By prefix, so that equal codes are equally far to the bit.
        quantized = torch.cdist(decoded[row[queries]], decoded)[:, row]
        quantized[torch.arange(len(queries)), queries] = torch.inf
        last = quantized.topk(NUM_NEIGHBOURS, largest=False).values[:, -1:]
        surely, maybe = quantized < last, quantized == last
        places = (NUM_NEIGHBOURS - surely.sum(dim=1)) / maybe.sum(dim=1)
        kept = (surely & is_near).sum(dim=1) + (maybe & is_near).sum(dim=1) * places
        found.append(kept.double().mean().item() / NUM_NEIGHBOURS)
    return tuple(found)


def spread_rows(num_items: int, most: int | None = None) -> npt.NDArray[np.int64]:
    """Rows that are evenly spread over a catalogue, all where they are not more than ``most``.

    Args:
        num_items: N.
        most: None for as many as neighbours are sought among.
    """
    count = min(num_items, MAX_ITEMS if most is None else most)
    return np.arange(count, dtype=np.int64) * num_items // max(1, count)
