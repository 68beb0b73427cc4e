"""Two processes train the same model as one, and a killed process is replaced without loss."""

import datetime
import json
import pickle
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recgrit.errors import TrainingError
from recgrit.retrieval.model import NodeVectors, TrieRetriever
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.training import loop
from recgrit.training.batches import build_windows
from tests.small_models import build_retriever, fit_retriever

NUM_ITEMS = 40
EXACT = {"dropout": 0.0, "node_dropout": 0.0, "epochs": 2}
# Settings for which one process and two processes must give the same result.
SAME = {
    "one part": EXACT,
    "two parts": EXACT | {"accumulation": 2},
    "averaged weights": EXACT | {"average_decay": 0.9, "valid_users": 33},
    "attributes": EXACT
    | {"item_attributes": ("category", "price"), "user_attributes": ("segment",)},
    "no vectors of nodes": EXACT | {"size": "constant"},
    # A batch has one window, so the second process has no window in any batch.
    "fewer windows than processes": EXACT | {"batch_targets": 1, "epochs": 1},
    # The decoder of this level is used only in some steps and in some processes.
    "a level with one choice": EXACT | {"batch_targets": 16, "epochs": 1, "tree_levels": None},
}
RESUMED = {"epochs": 3, "dropout": 0.3, "node_dropout": 0.3}


def learn(table, split, config, **options):
    """Train, and return the result with the gradients of the first steps."""
    gradients, unused, clip = [], [], torch.nn.utils.clip_grad_norm_

    def record(parameters, norm):
        parameters = list(parameters)
        if len(gradients) < 3:
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        unused.append(sum(p.grad is None for p in parameters))
        return clip(parameters, norm)

    torch.nn.utils.clip_grad_norm_ = record
    try:
        found = fit_retriever(table, split, None, config, seed=0, **options)
    finally:
        torch.nn.utils.clip_grad_norm_ = clip
    return {
        "gradients": torch.stack(gradients) if gradients else None,
        "unused": unused,
        "weights": found.model.state_dict(),
        "losses": [epoch.train_loss for epoch in found.history],
        "accuracies": [list(epoch.level_accuracy) for epoch in found.history],
        "scores": [epoch.valid_ndcg_at_10 for epoch in found.history],
        "recalls": [epoch.valid_recall_at_10 for epoch in found.history],
    }


@contextmanager
def recorded_drops():
    """Record the nodes that are dropped in each step."""
    draw, drops = NodeVectors.draw_dropped, []

    def record(nodes):
        drawn = draw(nodes)
        if drawn is not None:
            drops.append(drawn)
        return drawn

    NodeVectors.draw_dropped = record
    yield drops
    NodeVectors.draw_dropped = draw


def end_by_the_clock(process, table, split, config):
    """Train with a time limit that only the first process reaches. Return the number of epochs."""
    config = config.model_copy(update={"max_seconds": 1e-3 if process == 0 else 1e6})
    return len(fit_retriever(table, split, None, config, seed=0).history)


def train_one_epoch(table, split, config, checkpoint):
    """Train one epoch. Any validation score reaches the threshold of 0, which ends training."""
    loop.train_model(
        lambda: build_retriever(table, split, None, config),
        lambda model, precision: TrieRanker(model, beam_width=20, precision=precision),
        split,
        config,
        history_length=10,
        seed=0,
        checkpoint=checkpoint,
        stop_at=0.0,
    )


def fail_on_the_second(process, table, split, config):
    loss = TrieRetriever.loss

    def spoilt(*arguments):
        found = loss(*arguments)
        return type(found)(found.value * float("nan"), found.level_accuracy)

    if process == 1:
        TrieRetriever.loss = spoilt
    try:
        fit_retriever(table, split, None, config, seed=0)
    except TrainingError as error:
        return str(error)
    finally:
        TrieRetriever.loss = loss


def train_on_one_process(process, folder, jobs):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=process,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {name: learn(*jobs[name]) for name in SAME}
    logged = []
    with recorded_drops() as found["drops"]:
        found["whole"] = learn(*jobs["whole"], on_epoch=logged.append)
    found["logged"] = len(logged)
    # A training of another number of processes resumes from this state.
    train_one_epoch(*jobs["one part"], Path(folder) / "state.safetensors")
    found["epochs by the clock"] = end_by_the_clock(process, *jobs["whole"])
    found["error"] = fail_on_the_second(process, *jobs["whole"])
    torch.save(found, f"{folder}/{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def split(make_split, cyclic):
    # The number of windows is odd, and some windows are shorter than others.
    sequences = cyclic(num_users=75, num_items=NUM_ITEMS)
    cut = make_split([row[: 5 + i % 8] for i, row in enumerate(sequences)], NUM_ITEMS)
    return cut.with_own_people()


@pytest.fixture(scope="module")
def jobs(split, make_split, cyclic, make_table, random_codes, make_config):
    """Return the IDs, sequences and settings of every training."""
    codes = random_codes(NUM_ITEMS)
    table = make_table(codes, (4, 4, 4))
    few = make_split(cyclic(num_users=8, num_items=NUM_ITEMS), NUM_ITEMS)
    last = np.zeros((NUM_ITEMS, 1), np.int32)
    last[1] = 1
    alike = np.vstack([codes[:1], codes[:1], codes[2:]])
    one_choice = make_table(np.hstack([alike, last]), (4, 4, 4, 2))
    jobs = {name: (table, split, make_config(**changes)) for name, changes in SAME.items()}
    return jobs | {
        "fewer windows than processes": (table, few, jobs["fewer windows than processes"][2]),
        "a level with one choice": (one_choice, few, jobs["a level with one choice"][2]),
        "whole": (table, split, make_config(**RESUMED)),
    }


@pytest.fixture(scope="module")
def processes(jobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(train_on_one_process, (str(folder), jobs), nprocs=2)
    found = [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]
    found[0]["checkpoint"] = (folder / "state.safetensors").read_bytes()
    return found


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_the_same_model_as_one(jobs, processes, name):
    alone = learn(*jobs[name])
    together = processes[0][name]
    torch.testing.assert_close(
        together["gradients"][0], alone["gradients"][0], rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(together["gradients"], alone["gradients"], rtol=1e-2, atol=1e-4)
    assert together["unused"] == alone["unused"]
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-3)
    for key in ("accuracies", "scores", "recalls"):
        for two, one in zip(together[key], alone[key], strict=True):
            assert two == pytest.approx(one, abs=0.02)


@pytest.mark.parametrize("name", [*SAME, "whole"])
def test_processes_have_equal_losses_and_weights(processes, name):
    first, second = (found[name] for found in processes)
    assert first["losses"] == second["losses"]
    assert all(torch.equal(v, second["weights"][name]) for name, v in first["weights"].items())


def test_the_decoder_is_unused_in_some_steps(processes):
    """The decoder is unused in some steps, so the comparison above includes such steps."""
    unused = processes[0]["a level with one choice"]["unused"]
    assert min(unused) == 0 < max(unused)


def test_every_process_and_step_drops_different_nodes(processes):
    drops = torch.cat([torch.stack(found["drops"]) for found in processes])
    assert len(drops) > 2 * RESUMED["epochs"]
    assert len(drops.unique(dim=0)) == len(drops)


def test_one_process_resumes_the_checkpoint_of_two(jobs, processes, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(processes[0]["checkpoint"])
    found = learn(*jobs["one part"], checkpoint=path)
    assert found["losses"][0] == processes[0]["one part"]["losses"][0]
    assert found["losses"] == pytest.approx(processes[0]["one part"]["losses"], rel=1e-3)


def test_the_first_process_logs_and_its_clock_decides(processes):
    assert [found["logged"] for found in processes] == [RESUMED["epochs"], 0]
    assert [found["epochs by the clock"] for found in processes] == [1, 1]


def test_a_loss_that_diverges_in_one_process_ends_all(processes):
    assert "The loss became nan in epoch 1, step 1" in processes[0]["error"]
    assert processes[1]["error"] == processes[0]["error"]


def test_a_killed_process_is_replaced_and_training_resumes(jobs, processes, tmp_path):
    """torchrun resumes from the last checkpoint, with the losses of an undisturbed training."""
    _, split, config = jobs["whole"]
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(jobs["whole"]))
    steps = -(-build_windows(split, 10).num_targets // config.batch_targets)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    workers = ["--nproc-per-node", "2", "--max-restarts", "1"]
    script = [str(Path(__file__).with_name("elastic_training.py")), str(tmp_path), str(steps + 2)]
    found = subprocess.run(
        [*launcher, *workers, *script], capture_output=True, text=True, timeout=200, check=False
    )
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["life"] == 1
    assert result["losses"] == processes[0]["whole"]["losses"]
    assert result["scores"] == processes[0]["whole"]["scores"]
