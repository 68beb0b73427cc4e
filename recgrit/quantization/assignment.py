"""Functions that assign codes to vectors: nearest, sampled, beam-searched or balanced codes.

All functions compare squared distances and compute them in float32. If all codes of a level have
the same length, the nearest code is also the code with the highest cosine similarity. The same
functions therefore serve normalized levels.

Shapes: B vectors, D dimensions, L levels, K codes, W paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.quantization.quantizer import is_graph_captured

# Largest number of rows and of scores in one piece on a CPU, so that the scores stay in the
# processor's cache.
CPU_ROWS = 1024
CPU_SCORES = 2**20
# Number of scores in one piece on a GPU, 256 MiB. This many scores keep a GPU busy.
GPU_SCORES = 2**26
# Number of changes of the prices in balanced assignment, and the largest size of the first change
# relative to the mean squared distance to the nearest code.
NUM_PRICES = 100
FIRST_PRICE = 0.3


@torch.no_grad()
def nearest_codes(rows: Tensor, codes: Tensor) -> Tensor:
    """Return the index of the nearest code for each row.

    The first of several equally near codes is chosen.

    Args:
        rows: Vectors to assign, ``[B, D]``.
        codes: Codes to choose from, ``[K, D]``.

    Returns:
        Indices of codes, int64 ``[B]``.
    """
    offset = -0.5 * codes.square().sum(dim=-1)
    if is_graph_captured(rows):
        return torch.addmm(offset, rows, codes.T).argmax(dim=-1)
    chosen = rows.new_empty(len(rows), dtype=torch.int64)
    size = min(rows_at_once(rows, len(codes)), len(rows))
    scores = rows.new_empty(size, len(codes))
    with exact_products():
        for part, found in zip(rows.split(max(1, size)), chosen.split(max(1, size)), strict=True):
            products = scores[: len(part)]
            torch.addmm(offset, part, codes.T, out=products)
            if products.is_cpu:  # The argmax of numpy is twice as fast here.
                products.numpy().argmax(axis=1, out=found.numpy())
            else:
                torch.argmax(products, dim=-1, out=found)
    return chosen


@torch.no_grad()
def sample_codes(
    rows: Tensor, codes: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a code for each row with probabilities ``softmax(-d² / (T u))``.

    ``d`` is the distance between the row and a code. ``u`` is the mean squared distance of all rows
    to their nearest code. Division by ``u`` gives a temperature the same effect at every level and
    for every scale of the data.

    Args:
        rows: Vectors to assign, ``[B, D]``.
        codes: Codes to choose from, ``[K, D]``.
        temperature: The temperature T, above 0. A low temperature mostly draws the nearest code.
        generator: Source of the random numbers. None uses the default generator of torch.

    Returns:
        Indices of codes, int64 ``[B]``.
    """
    distances = torch.cdist(rows, codes).square()
    unit = distances.amin(dim=-1).mean().clamp_min(1e-12)
    odds = (-distances / (temperature * unit)).softmax(dim=-1)
    # The largest ratio of a probability to exponential noise is at each code with its probability.
    # This draw needs no cumulative sum.
    races = torch.empty_like(odds).exponential_(generator=generator)
    return (odds / races).argmax(dim=-1)


@torch.no_grad()
def search_codes(rows: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    """Search the codes of all levels whose sum is nearest to each row, by beam search.

    Greedy assignment takes the best code of each level. It can miss a pair of codes that fits
    better together. The beam search keeps the ``width`` best paths after each level, where a path
    is a code per level.

    Args:
        rows: Vectors to assign, ``[B, D]``.
        codebooks: Codes of each level, L tensors ``[K, D]``.
        width: Number of paths W that are kept after each level. 1 is greedy assignment.

    Returns:
        Codes of the best path of each row, int64 ``[B, L]``.
    """
    num_rows = rows_at_once(rows, width * max(len(codes) for codes in codebooks))
    with exact_products():
        found = [_search_part(part, codebooks, width) for part in rows.split(num_rows)]
    empty = rows.new_empty(0, len(codebooks), dtype=torch.int64)
    return torch.cat(found) if found else empty


def _search_part(rows: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    residuals = rows.unsqueeze(1)  # [B, W, D]
    paths = rows.new_empty(len(rows), 1, 0, dtype=torch.int64)
    for codes in codebooks:
        # Squared distance of a residual from a code: |r|² - 2 (r·c - |c|²/2).
        products = residuals @ codes.T - 0.5 * codes.square().sum(dim=-1)
        errors = residuals.square().sum(dim=-1, keepdim=True) - 2 * products
        num_kept = min(width, errors[0].numel()) if len(rows) else 1
        kept = errors.flatten(1).topk(num_kept, largest=False).indices
        parents, chosen = kept // len(codes), kept % len(codes)
        beam = torch.arange(len(rows), device=rows.device).unsqueeze(1)
        residuals = residuals[beam, parents] - F.embedding(chosen, codes)
        paths = torch.cat([paths[beam, parents], chosen.unsqueeze(-1)], dim=-1)
    best = residuals.square().sum(dim=-1).argmin(dim=1)
    return paths[torch.arange(len(rows), device=rows.device), best]


@torch.no_grad()
def balance_codes(rows: Tensor, codes: Tensor) -> Tensor:
    """Return a code for each row such that all codes are used about equally often.

    Each code has a price that is added to its squared distance. The price rises while more than
    ``B / K`` rows choose the code, and falls while fewer rows do. This solves the dual of an
    optimal transport problem.

    Args:
        rows: Vectors to assign, ``[B, D]``. All vectors have to be given in one call.
        codes: Codes to choose from, ``[K, D]``.

    Returns:
        Indices of codes, int64 ``[B]``.
    """
    wanted = len(rows) / len(codes)
    prices = codes.new_zeros(len(codes))
    step = first_price_step(rows, codes)
    for number in range(1, NUM_PRICES + 1):
        counts = torch.bincount(cheapest_codes(rows, codes, prices), minlength=len(codes))
        prices += price_change(counts, wanted, step, number)
    return cheapest_codes(rows, codes, prices)


def cheapest_codes(rows: Tensor, codes: Tensor, prices: Tensor) -> Tensor:
    """Return the code with the lowest sum of squared distance and price for each row.

    Args:
        rows: Vectors to assign, ``[B, D]``.
        codes: Codes to choose from, ``[K, D]``.
        prices: Price of each code, ``[K]``.

    Returns:
        Indices of codes, int64 ``[B]``.
    """
    offset = -0.5 * (codes.square().sum(dim=-1) + prices)
    parts = rows.split(rows_at_once(rows, len(codes)))
    return torch.cat([torch.addmm(offset, part, codes.T).argmax(dim=-1) for part in parts])


def first_price_step(rows: Tensor, codes: Tensor) -> Tensor:
    """Return the largest size of the first change of a price, a scalar tensor.

    It is `FIRST_PRICE` times the mean squared distance of the rows ``[B, D]`` to their nearest
    codes ``[K, D]``.
    """
    nearest = F.embedding(nearest_codes(rows, codes), codes)
    step: Tensor = FIRST_PRICE * (rows - nearest).square().sum(dim=-1).mean()
    return step


def price_change(counts: Tensor, wanted: float, step: Tensor, number: int) -> Tensor:
    """Return the change of each code's price after one round of assignment.

    Args:
        counts: Number of rows that chose each code in this round, ``[K]``.
        wanted: Number of rows that each code would have if all codes were used equally often.
        step: Largest size of the first change, from `first_price_step`.
        number: Number of the round, from 1. Later rounds make smaller changes.
    """
    size: float = number**-0.5
    return size * step * (counts / wanted - 1).clamp(-1, 1)


def rows_at_once(rows: Tensor, num_scores: int) -> int:
    """Return the number of rows to assign in one piece, which limits the memory for scores.

    Args:
        rows: The vectors to assign; their device decides the limit.
        num_scores: Number of scores that one row needs.
    """
    if rows.is_cpu:
        return min(CPU_ROWS, max(128, CPU_SCORES // num_scores))
    return max(1024, GPU_SCORES // num_scores)


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute matrix products in full float32 precision inside the block.

    With TF32 or bfloat16 products, some vectors would get other codes.
    """
    if torch.compiler.is_compiling():
        yield
        return
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
