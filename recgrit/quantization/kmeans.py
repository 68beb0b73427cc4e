"""K-means centroids, by faiss where it is installed and scikit-learn where it is not."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

NUM_ITERATIONS = 25


def fit_kmeans(
    vectors: Tensor, num_centroids: int, *, seed: int, spherical: bool = False
) -> Tensor:
    """Centroids ``[K, D]`` of all vectors ``[N, D]``, seeded with k-means++.

    Args:
        vectors: What to cluster; N ≥ K.
        num_centroids: K.
        seed: Makes the result repeatable.
        spherical: Cluster directions: centroids have unit length.
    """
    data = np.ascontiguousarray(vectors.detach().cpu().numpy(), dtype=np.float32)
    if importlib.util.find_spec("faiss") is not None:
        centroids = _fit_faiss(data, num_centroids, seed, spherical)
    else:
        centroids = _fit_sklearn(data, num_centroids, seed, spherical)
    return torch.from_numpy(centroids).to(vectors.device)


def _fit_faiss(data: np.ndarray, num_centroids: int, seed: int, spherical: bool) -> np.ndarray:
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
    return np.asarray(kmeans.centroids, dtype=np.float32)


def _fit_sklearn(data: np.ndarray, num_centroids: int, seed: int, spherical: bool) -> np.ndarray:
    from sklearn.cluster import KMeans

    kmeans = KMeans(num_centroids, n_init=1, max_iter=NUM_ITERATIONS, random_state=seed)
    centroids = np.asarray(kmeans.fit(data).cluster_centers_, dtype=np.float32)
    if spherical:
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    return centroids
