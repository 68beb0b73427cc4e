"""Compare baselines with vector-quantize-pytorch where both have the same definition."""

from __future__ import annotations

import pytest
import torch

from recgrit.quantization.baselines import build_quantizer
from recgrit.quantization.estimators import RotationTrick

peers = pytest.importorskip(
    "vector_quantize_pytorch", reason="needs recgrit[benchmarks]: vector-quantize-pytorch"
)


def test_the_rotation_trick_has_the_gradient_of_the_other_library() -> None:
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    draw = torch.Generator().manual_seed(0)
    latent, quantized, upstream = torch.randn(3, 40, 16, generator=draw)
    gradients, outputs = [], []
    for quantize in (
        lambda z: RotationTrick()(z, quantized, mean_gap=torch.ones(()), training=True),
        lambda z: rotate_to(z, quantized),
    ):
        z = latent.clone().requires_grad_()
        outputs.append(quantize(z))
        (outputs[-1] * upstream).sum().backward()
        gradients.append(z.grad)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_moving_averages_equal_those_of_the_other_library() -> None:
    """Both start from the same codes and get the same batches."""
    draw = torch.Generator().manual_seed(0)
    batches = torch.randn(60, 512, 8, generator=draw)
    ours = build_quantizer("ema", 8, 1, 16, reset_interval=None)
    ours.fit_init(batches[0, :64], seed=0)
    theirs = peers.VectorQuantize(
        dim=8, codebook_size=16, decay=0.99, rotation_trick=False, threshold_ema_dead_code=0
    )
    book = theirs._codebook
    start = ours.codebooks[0].detach().clone()
    book.embed.copy_(start.reshape_as(book.embed))
    level = ours.levels[0]
    # Their statistics count vectors of a batch of 512, while recgrit's are shares.
    book.embed_avg.copy_(level.ema_sums.reshape_as(book.embed_avg) * 512)
    book.cluster_size.copy_(level.ema_counts.reshape_as(book.cluster_size) * 512)
    apart = []
    for batch in batches:
        ours.train()(batch)
        ours.after_step()
        theirs.train()(batch)
        apart.append((ours.codebooks[0] - book.embed.reshape(16, 8)).norm(dim=-1).mean().item())
    moved = (ours.codebooks[0] - start).norm(dim=-1).mean().item()
    assert moved > 0.1
    assert apart[-1] < 1e-4 * moved


def test_simvq_assigns_codes_as_the_other_library_does() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 8, generator=draw)
    theirs = peers.SimVQ(dim=8, codebook_size=16)
    ours = build_quantizer("simvq", 8, 1, 16)
    ours.fit_init(vectors, seed=0)
    with torch.no_grad():
        theirs.frozen_codebook.copy_(ours.codebooks[0])
        theirs.code_transform.weight.copy_(torch.eye(8))
    quantized, codes, _ = theirs(vectors[None])
    assert torch.equal(codes[0], ours.encode(vectors)[:, 0])
    torch.testing.assert_close(quantized[0], ours.eval()(vectors).quantized)
