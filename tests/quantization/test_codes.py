"""Test ways to compute and use codes: beams, draws, balance, prefixes and fewer dimensions."""

import itertools

import pytest
import torch

from recgrit.quantization.baselines import IdentityQuantizer
from recgrit.quantization.grit import GRITVQ
from recgrit.quantization.quantizer import QuantizerError
from recgrit.quantization.residual import START_VECTORS_PER_CODE, ResidualGRITVQ

DIM = 12


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(500, DIM, generator=torch.Generator().manual_seed(0))


def start(vectors, num_levels=3, codebook_size=16, **settings):
    torch.manual_seed(0)
    quantizer = ResidualGRITVQ(DIM, num_levels, codebook_size, **settings)
    quantizer.fit_init(vectors)
    return quantizer


def errors_of(quantizer, vectors, codes):
    return (vectors - quantizer.decode(codes)).square().sum(dim=-1)


class TestBeams:
    def test_one_path_is_greedy_assignment(self, vectors):
        from recgrit.quantization.assignment import search_codes

        quantizer = start(vectors, normalized_from=0)
        found = search_codes(vectors - quantizer.center, quantizer.codebooks, 1)
        assert torch.equal(found, quantizer.encode(vectors))

    def test_more_paths_come_nearer(self, vectors):
        quantizer = start(vectors)
        errors = [
            errors_of(quantizer, vectors, quantizer.encode(vectors, beam_width=width)).mean()
            for width in (1, 2, 8, 32)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[2] < 0.97 * errors[0]

    @pytest.mark.parametrize("normalized_from", [0, 3])
    def test_all_paths_find_the_nearest_of_all_sums(self, vectors, normalized_from):
        quantizer = start(vectors, codebook_size=(4, 5, 6), normalized_from=normalized_from)
        every = torch.tensor(list(itertools.product(range(4), range(5), range(6))))
        nearest = torch.cdist(vectors, quantizer.decode(every)).amin(dim=1).square()
        found = quantizer.encode(vectors, beam_width=20)
        torch.testing.assert_close(errors_of(quantizer, vectors, found), nearest)

    def test_no_vectors_have_no_codes(self, vectors):
        assert start(vectors).encode(vectors[:0], beam_width=4).shape == (0, 3)


class TestDraws:
    def test_codes_are_drawn_by_their_distance(self):
        """The frequencies of many drawn codes match the probabilities that the test computes."""
        vq = GRITVQ(2, 4, transform="identity", kmeans_init=False)
        codes = torch.tensor([[0.0, 0], [1, 0], [0, 2], [3, 3]])
        with torch.no_grad():
            vq.levels[0].embedding.copy_(codes)
        x = torch.tensor([[0.4, 0.3]])
        distances = (codes - x).square().sum(dim=1)
        odds = (-distances / (1.5 * distances.min())).softmax(dim=0)
        draw = torch.Generator().manual_seed(0)
        drawn = vq.encode(x.expand(20_000, 2), temperature=1.5, generator=draw)
        shares = torch.bincount(drawn, minlength=4) / 20_000
        torch.testing.assert_close(shares, odds, atol=0.015, rtol=0)

    def test_a_low_temperature_takes_the_nearest(self, vectors):
        quantizer = start(vectors)
        drawn = quantizer.encode(vectors, temperature=1e-4)
        assert (drawn == quantizer.encode(vectors)).float().mean() > 0.99

    def test_training_draws_and_eval_mode_does_not(self, vectors):
        quantizer = start(vectors, temperature=1.0)
        assert not torch.equal(quantizer(vectors).codes, quantizer(vectors).codes)
        quantizer.eval()
        assert torch.equal(quantizer(vectors).codes, quantizer.encode(vectors))


def test_balanced_codes_are_used_about_equally_often(vectors):
    skewed = vectors * torch.linspace(0.1, 3, 500)[:, None]
    quantizer = start(skewed, codebook_size=10)

    def most(codes):
        return max(int(torch.bincount(codes[:, i]).max()) for i in range(3))

    plain, balanced = quantizer.encode(skewed), quantizer.encode(skewed, balanced=True)
    assert most(plain) > 75
    assert most(balanced) <= 62  # An even use would give 50.
    # Balanced codes are still much nearer than random codes.
    random = torch.randint(10, plain.shape)
    assert errors_of(quantizer, skewed, balanced).mean() < 0.4 * (
        errors_of(quantizer, skewed, random).mean()
    )


def test_two_ways_at_once_are_refused(vectors):
    with pytest.raises(QuantizerError, match="one of beam_width, balanced and temperature"):
        start(vectors).encode(vectors, beam_width=2, balanced=True)


class TestPrefixes:
    def test_a_prefix_decodes_to_the_sum_of_its_levels(self, vectors):
        quantizer = start(vectors + 40)
        codes = quantizer.encode(vectors + 40)
        total = quantizer.center
        for level, book in enumerate(quantizer.codebooks):
            total = total + book[codes[:, level]]
            prefix = codes[:, : level + 1]
            torch.testing.assert_close(quantizer.decode(prefix), total, atol=1e-4, rtol=0)

    def test_longer_prefixes_come_nearer(self, vectors):
        quantizer = start(vectors)
        codes = quantizer.encode(vectors)
        errors = [errors_of(quantizer, vectors, codes[:, :n]).mean() for n in (1, 2, 3)]
        assert errors == sorted(errors, reverse=True)

    def test_a_level_of_no_code_adds_nothing(self, vectors):
        quantizer = start(vectors)
        codes = quantizer.encode(vectors)
        cut = codes.clone()
        cut[:, 1:] = -1
        assert torch.equal(quantizer.decode(cut), quantizer.decode(codes[:, :1]))
        assert (quantizer.decode(torch.full_like(codes, -1)) == 0).all()

    @pytest.mark.parametrize("codes", [torch.zeros(4, 4).long(), torch.zeros(4, 0).long()])
    def test_other_numbers_of_levels_are_refused(self, vectors, codes):
        with pytest.raises(QuantizerError, match="Expected codes of 1 to 3 levels"):
            start(vectors).decode(codes)

    def test_a_code_that_there_is_not_is_refused(self, vectors):
        with pytest.raises(QuantizerError, match="Code 16 does not exist on level 1, which has"):
            start(vectors).decode(torch.tensor([[15, 16, 0]]))

    def test_level_dropout_trains_prefixes(self, vectors):
        """The output is the sum of a prefix's codes, and the dropped levels count no vectors."""
        quantizer = start(vectors, level_dropout=0.5)
        result = quantizer(vectors)
        lengths = (result.codes >= 0).sum(dim=1)
        assert (result.codes >= 0)[:, 0].all()
        for length in (1, 2, 3):
            assert (lengths == length).float().mean() > 0.1
        torch.testing.assert_close(result.quantized, quantizer.decode(result.codes))
        used = [int(level.counts.sum()) for level in quantizer.levels]
        assert used == [(result.codes[:, i] >= 0).sum() for i in range(3)]
        assert used[0] == 500 > used[1] > used[2]
        level = result.diagnostics.levels[2]
        assert level.codebook_usage == len(result.codes[:, 2].clamp_min(0).unique()) / 16
        assert (quantizer.eval()(vectors).codes >= 0).all()


class TestLookUp:
    @pytest.mark.parametrize("settings", [{}, {"codebook_dim": 6}])
    def test_code_vectors_add_up_to_what_is_decoded(self, vectors, settings):
        quantizer = start(vectors + 40, **settings)
        codes = quantizer.encode(vectors + 40)
        parts = quantizer.code_vectors(codes)
        assert parts.shape == (500, 3, DIM)
        total = parts.sum(dim=1) + quantizer.offset
        torch.testing.assert_close(total, quantizer.decode(codes), atol=1e-3, rtol=1e-4)
        books = quantizer.effective_codebooks()
        assert torch.equal(parts[:, 1], books[1][codes[:, 1]])
        codes[0, 2] = -1
        assert (quantizer.code_vectors(codes)[0, 2] == 0).all()

    def test_gradients_reach_codes_and_transform(self, vectors):
        quantizer = start(vectors, codebook_dim=6)
        quantizer.effective_codebooks()[1].square().sum().backward()
        level = quantizer.levels[1]
        assert level.embedding.grad.abs().sum() > 0
        assert level.transform.rotate.grad.abs().sum() > 0
        assert level.gain.grad.abs() > 0
        assert quantizer.projection.out.weight.grad.abs().sum() > 0
        assert quantizer.levels[0].embedding.grad is None
        quantizer.code_vectors(quantizer.encode(vectors)).sum().backward()
        assert quantizer.levels[0].embedding.grad.abs().sum() > 0

    def test_a_single_codebook_gives_its_effective_codes(self, vectors):
        vq = GRITVQ(DIM, 16)
        vq.fit_init(vectors)
        assert torch.equal(vq.effective_codebook().detach(), vq.codebook)
        assert vq.effective_codebook().requires_grad


class TestFewerDimensions:
    def test_it_starts_with_the_principal_components(self):
        """Vectors in a plane lose nothing by a projection to two dimensions."""
        draw = torch.Generator().manual_seed(0)
        plane = torch.randn(2, DIM, generator=draw)
        flat = torch.randn(800, 2, generator=draw) @ plane + 5
        full, small = start(flat, 2, 32), start(flat, 2, 32, codebook_dim=2)
        assert small.codebooks[0].shape == (32, 2)
        projected = small.projection.back(small.projection(flat))
        torch.testing.assert_close(projected, flat, atol=1e-3, rtol=1e-3)
        error = errors_of(small, flat, small.encode(flat)).mean()
        assert error < 1.2 * errors_of(full, flat, full.encode(flat)).mean()

    @pytest.mark.parametrize("codebook_dim", [3, DIM + 4])
    def test_projections_learn_with_the_codes(self, vectors, codebook_dim):
        quantizer = start(vectors, codebook_dim=codebook_dim)
        # Move the projections away from their start, which is already the best one.
        with torch.no_grad():
            for parameter in quantizer.projection.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-3)
        errors = []
        for _ in range(40):
            result = quantizer(vectors)
            error = (result.quantized - vectors).square().sum(dim=-1).mean()
            optimizer.zero_grad()
            (error + result.loss).backward()
            optimizer.step()
            errors.append(error.item())
        assert all(p.grad is not None for p in quantizer.projection.parameters())
        assert errors[-1] < 0.97 * errors[0]
        quantizer.eval()
        result = quantizer(vectors)
        assert torch.equal(result.quantized, quantizer.decode(result.codes))

    def test_projections_are_saved_to_a_file(self, vectors, tmp_path):
        quantizer = start(vectors, codebook_dim=5)
        quantizer.save(tmp_path / "vq")
        loaded = ResidualGRITVQ.load(tmp_path / "vq")
        assert torch.equal(
            loaded.decode(quantizer.encode(vectors)), quantizer.decode(quantizer.encode(vectors))
        )


class TestStart:
    def test_training_starts_by_kmeans_once_there_are_vectors(self, vectors):
        """With few vectors later levels have no residuals, so k-means waits for more vectors."""
        torch.manual_seed(0)
        quantizer = ResidualGRITVQ(DIM, 3, 16)
        random = [codes.clone() for codes in quantizer.codebooks]
        batches = vectors.split(START_VECTORS_PER_CODE * 16 // 2)
        quantizer(batches[0])
        assert torch.equal(quantizer.codebooks[0], random[0])
        quantizer.after_step()
        quantizer(batches[1])
        assert not torch.equal(quantizer.codebooks[0], random[0])
        placed = ResidualGRITVQ(DIM, 3, 16)
        seed = torch.initial_seed() % 2**31
        placed.fit_init(torch.cat(batches[:2]), seed=seed)
        for found, expected in zip(quantizer.codebooks, placed.codebooks, strict=True):
            assert torch.equal(found, expected)

    def test_it_starts_once(self, vectors):
        quantizer = ResidualGRITVQ(DIM, 3, 16)
        quantizer(vectors)
        first = quantizer.codebooks
        quantizer(vectors + 100)
        assert torch.equal(quantizer.codebooks[0], first[0])

    @pytest.mark.parametrize("how", ["fit_init", "load", "eval", "off"])
    def test_an_initialized_quantizer_keeps_its_codes(self, vectors, how):
        quantizer = ResidualGRITVQ(DIM, 3, 16, kmeans_init=how != "off", reset_interval=None)
        if how == "fit_init":
            quantizer.fit_init(vectors)
        elif how == "load":
            quantizer.load_state_dict(start(vectors).state_dict())
        elif how == "eval":
            quantizer.eval()
        before = quantizer.codebooks
        quantizer(vectors + 3)
        assert torch.equal(quantizer.codebooks[0], before[0])

    def test_it_beats_random_codes_after_training(self, vectors):
        """With random codes most codes are never the nearest, and the codebook collapses."""
        found = {}
        for kmeans_init in (True, False):
            torch.manual_seed(0)
            vq = GRITVQ(DIM, 64, kmeans_init=kmeans_init, reset_interval=None)
            optimizer = torch.optim.Adam(vq.parameters(), lr=1e-3)
            far = 5 * vectors + 30
            for _ in range(30):
                result = vq(far)
                optimizer.zero_grad()
                ((result.quantized - far).square().sum(dim=-1).mean() + result.loss).backward()
                optimizer.step()
            found[kmeans_init] = vq(far).diagnostics.levels[0].codebook_usage
        assert found[True] > 0.95
        assert found[False] < 0.5


def test_losses_by_level_are_those_of_the_first_levels_alone(vectors):
    quantizer = start(vectors)
    latent = vectors.clone().requires_grad_()
    mask = torch.arange(500) % 4 > 0
    losses = quantizer(latent, mask).level_losses
    codes = quantizer.encode(vectors)
    for level in range(3):
        error = errors_of(quantizer, vectors, codes[:, : level + 1])[mask].mean()
        assert losses[level].item() == pytest.approx(error.item(), rel=1e-4)
    losses[0].backward()
    gap = vectors - quantizer.decode(codes[:, :1])
    expected = 2 * gap * mask[:, None] / mask.sum()
    torch.testing.assert_close(latent.grad, expected, atol=1e-6, rtol=1e-4)
    assert all(codebook.embedding.grad is None for codebook in quantizer.levels)


def test_the_threshold_of_a_dead_code_is_a_setting(vectors):
    resets = {}
    for dead_below in (0.0, 0.1, 3.0):
        quantizer = start(vectors, dead_below=dead_below, reset_interval=1)
        quantizer(vectors)
        resets[dead_below] = quantizer.after_step()
    assert resets[0.0] == 0
    assert resets[3.0] > 40 > resets[0.1]


def test_the_identity_has_codes_but_no_vectors(vectors):
    identity = IdentityQuantizer(DIM, 2)
    assert (identity.encode(vectors) == 0).all()
    assert identity.encode(vectors).shape == (500, 2)
    with pytest.raises(QuantizerError, match="have no vectors to decode"):
        identity.decode(identity.encode(vectors))


def test_assignment_is_exact_for_every_precision_of_products(vectors):
    """TF32 or bfloat16 products would give some vectors other codes, so they are not used."""
    quantizer = start(vectors, codebook_size=256)
    expected = quantizer.encode(vectors), quantizer.encode(vectors, beam_width=4)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(quantizer.encode(vectors), expected[0])
        assert torch.equal(quantizer.encode(vectors, beam_width=4), expected[1])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
