import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recgrit.quantization.grit import GRITVQ
from recgrit.quantization.residual import ResidualGRITVQ


@pytest.fixture(scope="module")
def features(hierarchy):
    return hierarchy(1024)


def stepped(quantizer, vectors, optimizer):
    result = quantizer(vectors)
    loss = (result.quantized - vectors).square().sum(dim=-1).mean() + result.loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return result


def codes_of(quantizer):
    """Return all parameters, which determine the codes."""
    return {name: value.detach().clone() for name, value in quantizer.named_parameters()}


def stays(quantizer, before):
    return all(torch.equal(value, before[name]) for name, value in codes_of(quantizer).items())


def start(features, **settings):
    torch.manual_seed(0)
    quantizer = ResidualGRITVQ(16, 2, 8, **({"transform_rank": 2} | settings))
    quantizer.fit_init(features)
    return quantizer


@pytest.mark.parametrize("normalization", ["none", "two_sided"])
def test_reset_codes_are_placed_on_badly_quantized_vectors(features, normalization):
    quantizer = start(features, reset_interval=3, normalization=normalization, normalized_from=0)
    level = quantizer.levels[0]
    with torch.no_grad():  # Move two codes far from all inputs of level 0.
        level.embedding[1] = 8
        level.embedding[5] = -8
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-3)
    for _ in range(2):
        stepped(quantizer, features, optimizer)
        assert quantizer.after_step(optimizer) == 0
    result = stepped(quantizer, features, optimizer)
    dead = [code for code in (1, 5) if (result.codes[:, 0] == code).sum() == 0]
    assert dead
    before = level.effective().detach().clone()
    assert quantizer.after_step(optimizer) >= len(dead)
    after = level.effective().detach()
    residuals = result.residuals[0]
    if normalization == "two_sided":
        residuals = level.gain.detach() * residuals / residuals.norm(dim=-1, keepdim=True)
    others = [row for row in range(8) if row not in dead]
    for row in dead:
        assert (residuals - after[row]).norm(dim=-1).min() < 1e-4
    torch.testing.assert_close(after[others], before[others], atol=0.1, rtol=0)
    for parameter in (level.embedding, level.transform.mixing.mix_out):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][name]
            assert moment[dead].abs().sum() == 0
            assert moment[others].abs().sum() > 0


def test_reset_codes_go_where_the_error_is(features):
    """One vector far from all codes makes up the whole error, so the reset code goes there."""
    vq = GRITVQ(16, 8, transform="identity", reset_interval=1, kmeans_init=False)
    with torch.no_grad():
        vq.levels[0].embedding[0] = 1e4
    vectors = vq.codebook[1:].repeat(16, 1)
    vectors[77] += 50
    vq(vectors)
    assert vq.after_step() == 1
    torch.testing.assert_close(vq.codebook[0], vectors[77])


def test_no_more_codes_are_reset_than_there_are_vectors(features):
    vq = GRITVQ(16, 32, reset_interval=1)
    vq(features[:3])
    assert 0 < vq.after_step() <= 3


def test_nothing_changes_between_a_forward_and_its_backward(features):
    quantizer = start(features, reset_interval=1)
    before = codes_of(quantizer)
    result = quantizer(features[:10])  # Most codes are dead in so small a batch.
    assert stays(quantizer, before)
    result.quantized.sum().backward()
    # Without after_step, the next forward does the maintenance of the last step.
    quantizer(features[:10])
    assert not stays(quantizer, before)


def test_several_batches_may_come_before_a_step(features):
    """Moving averages of two half batches equal those of the whole. Codes change at the step."""
    whole, halves = (
        start(features, transform="identity", codebook_learning="ema", reset_interval=None)
        for _ in range(2)
    )
    halves.after_step()  # After one call of after_step, the module waits for further calls.
    whole(features)
    whole.after_step()
    before = halves.codebooks
    halves(features[:500])
    halves(features[500:])
    assert all(torch.equal(a, b) for a, b in zip(halves.codebooks, before, strict=True))
    halves.after_step()
    for found, expected in zip(halves.codebooks, whole.codebooks, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_eval_mode_and_frozen_quantizers_keep_no_record(features):
    quantizer = start(features, reset_interval=1)
    before = codes_of(quantizer)
    quantizer.eval()(features[:10])
    assert quantizer.after_step() == 0
    quantizer.train()
    quantizer.freeze()
    assert not quantizer(features[:10]).quantized.requires_grad
    assert quantizer.after_step() == 0
    assert stays(quantizer, before)


def test_moving_averages_are_the_formula(features):
    """For one level: shares and sums decay, and each code is the sum divided by the share."""
    vq = GRITVQ(16, 8, transform="identity", codebook_learning="ema", ema_decay=0.9)
    vq.fit_init(features)
    codes = vq.encode(features)
    share = torch.bincount(codes, minlength=8) / len(codes)
    sums = vq.codebook * share[:, None]
    for batch in features[:600].split(200):
        chosen = torch.cdist(batch, sums / share[:, None]).argmin(dim=-1)
        one_hot = torch.nn.functional.one_hot(chosen, 8).float()
        share = 0.9 * share + 0.1 * one_hot.mean(dim=0)
        sums = 0.9 * sums + 0.1 * one_hot.T @ batch / 200
        vq(batch)
        vq.after_step()
    torch.testing.assert_close(vq.codebook, sums / share[:, None], atol=1e-4, rtol=1e-4)


def test_moving_averages_are_means_of_members_for_any_rotation(features):
    """The codes in use are the means of their members for any rotation W."""
    quantizer = ResidualGRITVQ(16, 1, 8, transform_rank=0, codebook_learning="ema", ema_decay=0.0)
    quantizer.fit_init(features)
    with torch.no_grad():
        quantizer.levels[0].transform.rotate.add_(0.3 * torch.randn(16, 16))
    codes = quantizer(features).codes[:, 0]
    quantizer.after_step()
    for code in codes.unique():
        mean = features[codes == code].mean(dim=0)
        torch.testing.assert_close(quantizer.codebooks[0][code], mean, atol=1e-3, rtol=1e-3)


def test_the_running_gap_follows_the_data(features):
    quantizer = start(features)
    gap = (features - quantizer.decode(quantizer.encode(features))).norm(dim=-1).mean()
    torch.testing.assert_close(quantizer.mean_gap, gap, atol=1e-4, rtol=1e-4)
    for _ in range(400):
        quantizer(2 * features)
        quantizer.after_step()
    gap = (2 * features - quantizer(2 * features).quantized).norm(dim=-1).mean()
    torch.testing.assert_close(quantizer.mean_gap, gap.detach(), atol=0.05, rtol=0.05)


def _train_on_one_process(process, folder, learning):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=process, world_size=2
    )
    torch.set_num_threads(1)
    vectors = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    quantizer = ResidualGRITVQ(
        8,
        2,
        16,
        transform_rank=0 if learning == "ema" else 2,
        codebook_learning=learning,
        reset_interval=2,
    )
    quantizer.fit_init(vectors)
    # Processes with their own random draws would get different codes here.
    torch.manual_seed(100 + process)
    for step in range(6):
        quantizer(vectors[process::2][: 40 + 10 * step])
        quantizer.after_step()
    torch.save(quantizer.state_dict(), f"{folder}/{process}.pt")
    dist.destroy_process_group()


def _train_in_parallel(process, folder):
    """DistributedDataParallel copies the buffers of process 0 to all before each forward."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=process, world_size=2
    )
    torch.set_num_threads(1)
    vectors = torch.randn(256, 8, generator=torch.Generator().manual_seed(process)) + 9 * process
    torch.manual_seed(1)
    quantizer = ResidualGRITVQ(8, 1, 4, reset_interval=None, kmeans_init=False)
    parallel = torch.nn.parallel.DistributedDataParallel(quantizer)
    kept = []
    for _ in range(4):
        for _ in range(2):  # A step has two batches.
            result = parallel(vectors.clone().requires_grad_())
            (result.quantized.sum() + result.loss).backward()
            # Only one process keeps its results, which must not change the maintenance.
            kept += [result] if process else []
        quantizer.after_step()
    torch.save(quantizer.state_dict(), f"{folder}/{process}.pt")
    dist.destroy_process_group()


@pytest.mark.processes
def test_batches_of_all_processes_count_under_data_parallel_training(tmp_path):
    mp.spawn(_train_in_parallel, (str(tmp_path),), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in (0, 1)
    )
    assert first["levels.0.uses"].sum() == 4 * 2 * 2 * 256
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-6, rtol=1e-6)


@pytest.mark.processes
@pytest.mark.parametrize("learning", ["joint", "ema"])
def test_processes_stay_equal(tmp_path, learning):
    mp.spawn(_train_on_one_process, (str(tmp_path), learning), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in (0, 1)
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=0, rtol=0)
