"""K-means centroids, by faiss where it is installed and by torch where it is not."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.quantization.assignment import (
    NUM_PRICES,
    cheapest_codes,
    first_price_step,
    nearest_codes,
    price_change,
)

NUM_ITERATIONS = 25
# Means of balanced clusters are taken after every so many changes of their prices.
PRICES_PER_MEAN = 5


def fit_kmeans(
    vectors: Tensor,
    num_centroids: int,
    *,
    seed: int,
    spherical: bool = False,
    balanced: bool = False,
) -> Tensor:
    """Centroids ``[K, D]`` of all vectors ``[N, D]``, seeded with k-means++.

    Args:
        vectors: What to cluster; N ≥ K.
        num_centroids: K.
        seed: Makes the result repeatable.
        spherical: Cluster directions: centroids have unit length.
        balanced: Keep the clusters about equally large.
    """
    data = vectors.detach().float().cpu().contiguous()
    if importlib.util.find_spec("faiss") is not None:
        centroids = _fit_faiss(data.numpy(), num_centroids, seed, spherical)
    else:
        centroids = _fit_torch(data, num_centroids, seed, spherical)
    if balanced:
        centroids = _balance(data, centroids, spherical)
    return centroids.to(vectors.device)


def _balance(data: Tensor, centroids: Tensor, spherical: bool) -> Tensor:
    """Centroids of clusters that a price per cluster keeps about equally large.

    Vectors that are assigned later pay no price: their clusters are as balanced as the centroids
    alone make them, unless they are assigned by `balance_codes` in turn.
    """
    wanted = len(data) / len(centroids)
    prices = data.new_zeros(len(centroids))
    step = first_price_step(data, centroids)
    for number in range(1, NUM_PRICES + 1):
        nearest = cheapest_codes(data, centroids, prices)
        counts = torch.bincount(nearest, minlength=len(centroids))
        prices += price_change(counts, wanted, step, number)
        if number % PRICES_PER_MEAN == 0:
            sums = torch.zeros_like(centroids).index_add_(0, nearest, data)
            means = sums / counts.clamp_min(1)[:, None]
            centroids = torch.where(counts[:, None] > 0, means, centroids)
            centroids = F.normalize(centroids, dim=-1) if spherical else centroids
    return centroids


def _fit_faiss(data: np.ndarray, num_centroids: int, seed: int, spherical: bool) -> Tensor:
    import faiss

    kmeans = faiss.Kmeans(
        data.shape[1],
        num_centroids,
        niter=NUM_ITERATIONS,
        seed=seed,
        spherical=spherical,
        # All vectors count, and few of them are no reason for a warning on standard output.
        min_points_per_centroid=1,
        max_points_per_centroid=data.shape[0],
        # Not yet run on a GPU by us. Sums in another order move centroids by rounding only.
        gpu=faiss.get_num_gpus() > 0,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    kmeans.train(data)
    return torch.from_numpy(np.asarray(kmeans.centroids, dtype=np.float32))


def _fit_torch(data: Tensor, num_centroids: int, seed: int, spherical: bool) -> Tensor:
    """Lloyd's iterations; a centroid without vectors moves to the vector that is served worst."""
    generator = torch.Generator().manual_seed(seed)
    centroids = _choose_starts(data, num_centroids, generator)
    for _ in range(NUM_ITERATIONS):
        if spherical:
            centroids = F.normalize(centroids, dim=-1)
        nearest = nearest_codes(data, centroids)
        counts = torch.bincount(nearest, minlength=num_centroids)
        errors = (data - centroids[nearest]).square().sum(dim=-1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, data)
        centroids = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centroids[empty] = data[errors.topk(len(empty)).indices]
    return F.normalize(centroids, dim=-1) if spherical else centroids


def _choose_starts(data: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ of ``[N, D]``: ``[K, D]`` vectors that are far from one another.

    A vector is drawn by its squared distance to the nearest start so far; of a few that are drawn,
    the one that lowers the sum of these distances most is kept.
    """
    num_draws = 2 + int(math.log(num_centroids))
    chosen = [int(torch.randint(len(data), (1,), generator=generator))]
    distances = (data - data[chosen[0]]).square().sum(dim=-1)
    while len(chosen) < num_centroids:
        places = distances.double().cumsum(dim=0)
        draws = torch.rand(num_draws, dtype=torch.float64, generator=generator) * places[-1]
        candidates = torch.searchsorted(places, draws).clamp_max(len(data) - 1)
        left = torch.cdist(data, data[candidates]).square().minimum(distances[:, None])
        best = int(left.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        distances = left[:, best]
    return data[chosen]
