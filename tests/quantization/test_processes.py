"""Two processes fit the same tokenizer as one, even if a process gets no items of a batch."""

import dataclasses
import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recgrit.distributed import sum_
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fit import fit_tokenizer
from recgrit.quantization.residual import ResidualGRITVQ

# These are eight full batches and one item, so the second process has no item in the last batch.
NUM_ITEMS = 1025
SETTINGS = {
    "num_levels": 2,
    "codebook_size": 16,
    "epochs": 4,
    "batch_size": 128,
    "learning_rate": 5e-3,
    "transform_rank": 2,
    "reset_interval": 5,
}
VARIANTS = {
    "joint": {},
    "averages": {"codebook_learning": "ema", "transform_rank": 0},
    # The mean gap is unknown before the first step, and the usage loss depends on all vectors.
    "from random codes": {"init": "random", "usage_weight": 0.5, "codebook_weight": 0.2},
    "autoencoder": {"autoencoder": "mlp", "hidden_dims": (24,), "code_dim": 8},
}
# Number of the first vector of the second process.
CUTS = {"a fifth": 20, "all": 100, "none": 0}


def fit(features, variant):
    fitted = fit_tokenizer(features, TokenizerConfig(**(SETTINGS | VARIANTS[variant])), seed=0)
    return {
        "weights": fitted.model.state_dict(),
        "codes": fitted.codes,
        "history": [dataclasses.asdict(epoch) for epoch in fitted.history],
        "norms": [level.residual_norm for level in fitted.diagnostics.levels],
    }


def gradient(vectors, mine):
    """Return the gradient of a first step, in which every mean is taken over all processes."""
    torch.manual_seed(0)
    quantizer = ResidualGRITVQ(16, 2, 8, radius="huber", usage_weight=1.0, transform_rank=2)
    result = quantizer(vectors[mine])
    loss = (result.quantized - vectors[mine]).square().sum() / max(1, len(vectors[mine]))
    ((loss + result.loss) * len(vectors[mine]) / len(vectors)).backward()
    gradients = [p.grad for p in quantizer.parameters() if p.requires_grad]
    sum_(gradients)
    return torch.cat([g.flatten() for g in gradients])


def uneven(features):
    """Draw vectors whose lengths grow, so the processes get vectors of different lengths."""
    return features[:100] * torch.linspace(0.1, 5, 100)[:, None]


def fit_on_one_process(process, folder, features):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=process,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {variant: fit(features, variant) for variant in VARIANTS}
    for name, cut in CUTS.items():
        mine = slice(cut) if process == 0 else slice(cut, None)
        found[name] = gradient(uneven(features), mine)
    torch.save(found, f"{folder}/{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def features(hierarchy):
    return hierarchy(NUM_ITEMS, noise=0.5)


@pytest.fixture(scope="module")
def processes(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(fit_on_one_process, (str(folder), features), nprocs=2)
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_fit_nearly_the_same_codes_as_one(features, processes, variant):
    alone, together = fit(features, variant), processes[0][variant]
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert two["reconstruction_loss"] == pytest.approx(one["reconstruction_loss"], rel=1e-3)
        assert two["mean_gap"] == pytest.approx(one["mean_gap"], rel=1e-3)
        assert two["num_resets"] == one["num_resets"]
    # The processes sum in another order, which can change the code of an item between two codes.
    assert (alone["codes"] != together["codes"]).any(dim=-1).float().mean() < 0.005
    assert together["norms"] == pytest.approx(alone["norms"], rel=1e-3)


@pytest.mark.parametrize("cut", CUTS)
def test_the_gradient_is_that_of_all_vectors(features, processes, cut):
    alone = gradient(uneven(features), slice(None))
    for process in processes:
        torch.testing.assert_close(process[cut], alone, rtol=1e-3, atol=1e-5)


def test_codes_are_reset_during_the_fit(processes):
    """Codes are reset in this variant, so the comparison above includes resets."""
    assert sum(epoch["num_resets"] for epoch in processes[0]["from random codes"]["history"]) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_processes_have_equal_codes_and_weights(processes, variant):
    first, second = (process[variant] for process in processes)
    assert first["history"] == second["history"]
    assert torch.equal(first["codes"], second["codes"])
    assert all(torch.equal(v, second["weights"][name]) for name, v in first["weights"].items())
