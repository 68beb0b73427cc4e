"""Which code a vector gets: the nearest, one that is drawn, or the best path through all levels.

All functions compare squared distances and compute them in float32. If all codes of a level have
the same length, the nearest code is also the one with the most similar direction, so the same rule
serves normalized levels.

Shapes: B vectors, D dimensions, L levels, K codes, W paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.quantization.quantizer import is_graph_captured

# Rows assigned at once, fewer where there are many codes: scores stay in the processor's cache.
CPU_ROWS = 1024
CPU_SCORES = 2**20
# A GPU is busy with as many scores as this, 256 MiB.
GPU_SCORES = 2**26
# Changes of the prices that keep codes equally used, and steps of their size.
NUM_PRICES = 100
FIRST_PRICE = 0.3


@torch.no_grad()
def nearest_codes(rows: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest of the codes ``[K, D]`` for each row ``[B, D]``, int64 ``[B]``.

    Of equally near codes the first.
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
            if products.is_cpu:  # numpy's argmax of a row is twice as fast.
                products.numpy().argmax(axis=1, out=found.numpy())
            else:
                torch.argmax(products, dim=-1, out=found)
    return chosen


@torch.no_grad()
def sample_codes(
    rows: Tensor, codes: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Codes drawn from ``softmax(-d² / (T u))``, int64 ``[B]``.

    ``d`` is the distance of a code and ``u`` the mean squared distance to the nearest one, so that
    a temperature means the same at every level and in every unit of the data.

    Args:
        rows: ``[B, D]``.
        codes: ``[K, D]``.
        temperature: T.
        generator: Draws.
    """
    distances = torch.cdist(rows, codes).square()
    unit = distances.amin(dim=-1).mean().clamp_min(1e-12)
    odds = (-distances / (temperature * unit)).softmax(dim=-1)
    # Exponential races: the winner is drawn by the odds, and nobody waits for a sum.
    races = torch.empty_like(odds).exponential_(generator=generator)
    return (odds / races).argmax(dim=-1)


@torch.no_grad()
def search_codes(rows: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    """Codes ``[B, L]`` of the best of ``width`` paths: the sum that is nearest to the row.

    Greedy assignment takes the best code of each level and may miss a pair of codes that fits
    better together. With ``width=1`` this is greedy assignment.
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
    """Codes int64 ``[B]`` that rows ``[B, D]`` use about equally often.

    A price per code is added to the squared distance, and rises while more rows take the code than
    its part (the dual of optimal transport). All rows have to be given at once.
    """
    wanted = len(rows) / len(codes)
    prices = codes.new_zeros(len(codes))
    step = first_price_step(rows, codes)
    for number in range(1, NUM_PRICES + 1):
        counts = torch.bincount(cheapest_codes(rows, codes, prices), minlength=len(codes))
        prices += price_change(counts, wanted, step, number)
    return cheapest_codes(rows, codes, prices)


def cheapest_codes(rows: Tensor, codes: Tensor, prices: Tensor) -> Tensor:
    """The code of least squared distance plus price ``[K]``, int64 ``[B]``."""
    offset = -0.5 * (codes.square().sum(dim=-1) + prices)
    parts = rows.split(rows_at_once(rows, len(codes)))
    return torch.cat([torch.addmm(offset, part, codes.T).argmax(dim=-1) for part in parts])


def first_price_step(rows: Tensor, codes: Tensor) -> Tensor:
    """How much a price changes at first: a part of the mean squared distance, a scalar."""
    nearest = F.embedding(nearest_codes(rows, codes), codes)
    step: Tensor = FIRST_PRICE * (rows - nearest).square().sum(dim=-1).mean()
    return step


def price_change(counts: Tensor, wanted: float, step: Tensor, number: int) -> Tensor:
    """Change number ``number``, from 1, of the prices ``[K]`` of codes used ``counts`` times."""
    size: float = number**-0.5
    return size * step * (counts / wanted - 1).clamp(-1, 1)


def rows_at_once(rows: Tensor, num_scores: int) -> int:
    """Rows to assign in one piece where each has this many scores."""
    if rows.is_cpu:
        return min(CPU_ROWS, max(128, CPU_SCORES // num_scores))
    return max(1024, GPU_SCORES // num_scores)


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32: with TF32 or bfloat16 vectors change their codes."""
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
