"""K-means centroids, computed by faiss if it is installed and by torch otherwise."""

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
# Number of changes of the prices between two updates of the centroids of balanced clusters.
PRICES_PER_MEAN = 5


def fit_kmeans(
    vectors: Tensor,
    num_centroids: int,
    *,
    seed: int,
    spherical: bool = False,
    balanced: bool = False,
) -> Tensor:
    """Compute the k-means centroids of vectors, started with k-means++.

    Args:
        vectors: Vectors to cluster, ``[N, D]``, with at least as many vectors as centroids.
        num_centroids: Number of centroids K.
        seed: Seed of the random numbers, which makes the result repeatable.
        spherical: Whether to cluster directions. The centroids then have unit length.
        balanced: Whether to keep the clusters about equally large.

    Returns:
        The centroids, ``[K, D]``, on the device of the vectors.
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
    """Move centroids so that their clusters are about equally large.

    While the centroids are fitted, each cluster has a price that is added to its squared distances
    and rises while the cluster is too large. Vectors that are assigned later pay no price. Their
    clusters are then only as balanced as the centroids alone make them, unless `balance_codes`
    assigns them.
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
        # These limits make faiss use all vectors, and print no warning if there are few.
        min_points_per_centroid=1,
        max_points_per_centroid=data.shape[0],
        # The GPU path is untested. Sums in another order change the centroids by rounding only.
        gpu=faiss.get_num_gpus() > 0,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    kmeans.train(data)
    return torch.from_numpy(np.asarray(kmeans.centroids, dtype=np.float32))


def _fit_torch(data: Tensor, num_centroids: int, seed: int, spherical: bool) -> Tensor:
    """Run Lloyd's iterations in torch.

    A centroid without vectors moves to one of the vectors with the largest error.
    """
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
    """Choose K of N vectors as starts of k-means, by greedy k-means++.

    Candidates are drawn with a probability proportional to their squared distance to the nearest
    start so far. Of several candidates, the one that lowers the sum of these distances most becomes
    a start.

    Args:
        data: Vectors, ``[N, D]``.
        num_centroids: Number of starts K.
        generator: Source of the random numbers.

    Returns:
        The starts, ``[K, D]``.
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
