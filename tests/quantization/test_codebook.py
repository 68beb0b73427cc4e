import pytest
import torch
import torch.nn.functional as F

from recgrit.quantization.assignment import CPU_ROWS, nearest_codes
from recgrit.quantization.codebook import Codebook


def two_sided(normalized):
    return "two_sided" if normalized else "none"


def disturbed(codebook_size, dim, *, normalized, seed=0):
    """Build a codebook as in the middle of training, in which no transform is the identity."""
    torch.manual_seed(seed)
    codebook = Codebook(codebook_size, dim, rank=3, normalization=two_sided(normalized))
    with torch.no_grad():
        codebook.transform.mixing.mix_out.normal_(std=0.1)
        codebook.transform.rotate.add_(0.2 * torch.randn(dim, dim))
        if normalized:
            codebook.gain.fill_(0.7)
    return codebook


# This makes more than two chunks, of which the last is short.
NUM_VECTORS = 2 * CPU_ROWS + 37


def test_plain_codes_are_the_nearest():
    codebook = disturbed(50, 8, normalized=False)
    vectors = torch.randn(NUM_VECTORS, 8)
    codes = codebook.effective().detach()
    nearest = torch.cdist(vectors.double(), codes.double()).argmin(dim=-1)
    assert torch.equal(nearest_codes(vectors, codes), nearest)


def test_plain_codes_are_those_of_a_flat_index():
    faiss = pytest.importorskip("faiss", reason="the flat index of faiss is the second opinion")
    codebook = disturbed(50, 8, normalized=False)
    vectors = torch.randn(NUM_VECTORS, 8)
    codes = codebook.effective().detach()
    index = faiss.IndexFlatL2(8)
    index.add(codes.numpy())
    _, nearest = index.search(vectors.numpy(), 1)
    assert nearest_codes(vectors, codes).tolist() == nearest[:, 0].tolist()


def test_normalized_codes_have_the_best_cosine_and_the_length_of_the_gain():
    codebook = disturbed(50, 8, normalized=True)
    vectors = torch.randn(NUM_VECTORS, 8) * torch.rand(NUM_VECTORS, 1).exp()
    codes = codebook.effective().detach()
    torch.testing.assert_close(codes.norm(dim=-1), torch.full((50,), 0.7))
    raw = codebook.transform(codebook.embedding).detach()
    cosine = F.cosine_similarity(vectors[:, None].double(), raw[None].double(), dim=-1)
    assert torch.equal(nearest_codes(vectors, codes), cosine.argmax(dim=-1))


@pytest.mark.parametrize("normalized", [False, True])
def test_placed_codes_land_on_their_targets(normalized):
    codebook = disturbed(20, 6, normalized=normalized)
    before = codebook.effective().detach()
    targets = torch.randn(3, 6)
    codebook.place_(torch.tensor([2, 7, 11]), targets)
    placed = codebook.effective().detach()
    if normalized:
        targets = 0.7 * F.normalize(targets, dim=-1)
    torch.testing.assert_close(placed[[2, 7, 11]], targets, atol=1e-5, rtol=0)
    # The other codes change only by the shared mixing.
    others = [i for i in range(20) if i not in (2, 7, 11)]
    assert (placed - before)[others].norm(dim=-1).max() < before.norm(dim=-1).mean()


def test_placing_moves_no_other_code_while_nothing_is_mixed():
    codebook = disturbed(20, 6, normalized=False)
    with torch.no_grad():
        codebook.transform.mixing.mix_out.zero_()
    before = codebook.effective().detach()
    codebook.place_(torch.tensor([5]), torch.full((1, 6), 9.0))
    changed = (codebook.effective() != before).any(dim=-1)
    assert changed.nonzero().flatten().tolist() == [5]


def test_start_takes_the_least_squares_gain():
    torch.manual_seed(0)
    residual = 5 * torch.randn(400, 6)
    codebook = Codebook(10, 6, rank=2, normalization="two_sided")
    codebook.fit_init_(residual, seed=0)
    codes = codebook.effective().detach()
    chosen = codes[nearest_codes(residual, codes)]
    error = (residual - chosen).square().sum()
    for factor in (0.98, 1.02):
        assert (residual - factor * chosen).square().sum() > error


def test_start_forgets_an_earlier_transform():
    codebook = disturbed(10, 6, normalized=False)
    codebook.fit_init_(torch.randn(200, 6), seed=0)
    assert torch.equal(codebook.effective(), codebook.embedding)


@pytest.mark.parametrize("normalized", [False, True])
def test_gain_is_learned_only_where_it_is_used(normalized):
    codebook = disturbed(10, 6, normalized=normalized)
    codebook.effective().sum().backward()
    assert (codebook.gain.grad is not None) == normalized
