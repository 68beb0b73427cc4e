import importlib.util

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from recgrit.quantization.kmeans import fit_kmeans

HAS_FAISS = importlib.util.find_spec("faiss") is not None
find_spec = importlib.util.find_spec


@pytest.fixture(params=["faiss", "torch"])
def path(request, monkeypatch):
    """Run a test with faiss, and again as if faiss were not installed."""
    if request.param == "faiss" and not HAS_FAISS:
        pytest.skip("faiss is not installed")
    if request.param == "torch":
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == "faiss" else find_spec(name, *rest),
        )
    return request.param


def error(vectors, centroids):
    """Return the mean squared distance to the nearest centroid."""
    return float(torch.cdist(vectors, centroids).square().min(dim=-1).values.mean())


def test_finds_the_planted_groups(path, hierarchy):
    vectors = hierarchy(800, noise=0.02)
    centroids = fit_kmeans(vectors, 64, seed=0)
    assert (centroids.shape, centroids.dtype) == ((64, 16), torch.float32)
    # The best of four fits of scikit-learn is only a little better.
    best = KMeans(64, n_init=4, random_state=0).fit(vectors.numpy()).inertia_ / len(vectors)
    assert error(vectors, centroids) < 3 * best
    # A missed group would add several times the noise to the error.
    assert error(vectors, centroids) < 0.1 * error(vectors, vectors.mean(dim=0, keepdim=True))


def test_without_structure_it_is_as_good_as_the_reference(path):
    vectors = torch.randn(800, 6)
    centroids = fit_kmeans(vectors, 20, seed=0)
    best = KMeans(20, n_init=4, random_state=0).fit(vectors.numpy()).inertia_ / len(vectors)
    assert error(vectors, centroids) == pytest.approx(best, rel=0.05)
    random = vectors[torch.randperm(len(vectors))[:20]]
    assert error(vectors, centroids) < 0.85 * error(vectors, random)


def test_directions_are_clustered_on_the_sphere(path):
    vectors = F.normalize(torch.randn(600, 6), dim=-1)
    centroids = fit_kmeans(vectors, 20, seed=0, spherical=True)
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(20), atol=1e-5, rtol=0)
    cosine = (vectors @ centroids.T).max(dim=-1).values.mean()
    others = F.normalize(fit_kmeans(vectors, 20, seed=0), dim=-1)
    assert cosine > (vectors @ others.T).max(dim=-1).values.mean() - 0.02
    assert cosine > 0.7


def test_the_same_seed_gives_the_same_centroids(path):
    vectors = torch.randn(300, 5)
    first, again, other = (fit_kmeans(vectors, 12, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_as_many_centroids_as_vectors(path):
    vectors = torch.randn(12, 5)
    assert error(vectors, fit_kmeans(vectors, 12, seed=0)) < 1e-6


def test_input_is_not_touched(path):
    vectors = torch.randn(100, 5)
    before = vectors.clone()
    fit_kmeans(vectors, 10, seed=0, spherical=True)
    assert torch.equal(vectors, before)


def test_vectors_on_few_points_need_no_more_centroids(path):
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]).repeat(10, 1)
    centroids = fit_kmeans(vectors, 5, seed=0)
    assert centroids.isfinite().all()
    assert error(vectors, centroids) < 1e-6


def test_balanced_clusters_are_about_equally_large(path):
    """Clusters by the nearest centroid are about equal in size, although most vectors are close."""
    generator = torch.Generator().manual_seed(0)
    spreads = torch.where(torch.arange(1000) < 900, 0.3, 3.0)
    vectors = spreads[:, None] * torch.randn(1000, 8, generator=generator)

    def spread(balanced):
        centroids = fit_kmeans(vectors, 16, seed=0, balanced=balanced)
        assert centroids.isfinite().all()
        counts = torch.bincount(torch.cdist(vectors, centroids).argmin(dim=1), minlength=16)
        shares = counts / counts.sum()
        return float((-shares * shares.clamp_min(1e-9).log()).sum().exp())

    assert spread(balanced=True) > spread(balanced=False) + 1
