"""A real cluster of two workers gives the results of one process, even if processes die."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from recgrit.config import load_config
from recgrit.embedding.cache import encode_cached
from recgrit.engines.config import EngineConfig
from recgrit.engines.engine import start_engine
from recgrit.engines.local import LocalEngine
from recgrit.engines.shards import Shards
from recgrit.errors import ConfigError, EngineError
from recgrit.experiment import ExperimentConfig
from recgrit.manifests import read_manifest
from recgrit.pipeline import run_experiment

NUM_ROWS = 12
ALL = ",".join(map(str, range(NUM_ROWS)))


@pytest.fixture
def shards(tmp_path):
    return Shards("embed", tmp_path / "shards", num_rows=NUM_ROWS, shard_rows=2, suffix=".txt")


def read(shards):
    return ",".join(path.read_text() for path in shards.paths())


# Functions make the builders, so Ray sends them by value. The workers cannot import this module.
def build_writer(died=None, poison=None, started=None):
    def build():

        if started is not None:
            (started / str(os.getpid())).write_text("")

        def write(rows, path):
            import signal

            if rows.start == poison:
                raise ValueError("a text of nothing but poison")
            if died is not None and rows.start == 4 and not died.exists():
                path.write_text("half a sha")
                died.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            path.write_text(",".join(map(str, range(rows.start, rows.stop))))

        return write

    return build


def test_actors_are_built_once_and_do_several_shards(ray_engine, shards, tmp_path):
    started = tmp_path / "started"
    started.mkdir()
    ray_engine.map_shards(build_writer(started=started), shards)
    assert read(shards) == ALL
    assert 1 <= len(list(started.iterdir())) <= 2


def test_workers_share_a_gpu(cluster, ray_engine, shards, tmp_path):
    started = tmp_path / "started"
    started.mkdir()

    def build():
        def write(rows, path):
            import os
            import time

            (started / str(os.getpid())).write_text("")
            deadline = time.monotonic() + 60
            while len(list(started.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)  # Wait until both workers have a shard.
            path.write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}")

        return write

    config = EngineConfig(kind="ray", address=cluster, gpus_per_worker=0.5)
    with start_engine(config) as engine:
        engine.map_shards(build, shards)
    devices, workers = zip(*(path.read_text().split() for path in shards.paths()), strict=True)
    assert set(devices) == {"0"}
    assert len(set(workers)) == 2


class LengthEncoder:
    """An encoder whose vectors hold the lengths of the texts."""

    name, fingerprint = "lengths", "one"

    def encode(self, texts):
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_texts_are_encoded_as_by_one_process(ray_engine, tmp_path):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    texts = [f"{'x' * (i % 13)}{i % 40}" for i in range(100)]
    found = {}
    for engine in (LocalEngine(), ray_engine):
        engine.config = engine.config.model_copy(update={"shard_texts": 8})
        name = type(engine).__name__
        found[name] = encode_cached(
            texts, LengthEncoder(), tmp_path / name, engine=engine, build=LengthEncoder
        )
    np.testing.assert_array_equal(found["LocalEngine"], found["RayEngine"])
    np.testing.assert_array_equal(found["RayEngine"][:, 0], [len(text) for text in texts])


def test_shards_are_completed_after_a_worker_is_killed(ray_engine, shards, tmp_path):
    died = tmp_path / "died"
    ray_engine.map_shards(build_writer(died=died), shards)
    assert died.exists()
    assert read(shards) == ALL


def test_a_poisoned_shard_is_reported_and_the_others_done(ray_engine, shards):
    with pytest.raises(EngineError, match=r"1 of 6 shards of embed .* 3: .*nothing but poison"):
        ray_engine.map_shards(build_writer(poison=6), shards)
    assert shards.find_pending() == [3]
    before = {path: path.stat().st_mtime_ns for path in shards.folder.glob("*.txt")}
    ray_engine.map_shards(build_writer(), shards)
    assert read(shards) == ALL
    assert all(path.stat().st_mtime_ns == before[path] for path in before)


def test_a_shard_that_kills_every_worker_is_given_up(ray_engine, shards):
    def build():
        import signal

        def write(rows, path):
            if rows.start == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            path.write_text(",".join(map(str, range(rows.start, rows.stop))))

        return write

    with pytest.raises(EngineError, match=r"1 of 6 .* 2: its worker died 3 times"):
        ray_engine.map_shards(build, shards)
    assert shards.find_pending() == [2]


def test_shards_are_completed_with_a_full_object_store(ray_engine, shards):
    import ray

    held = [ray.put(np.ones(2**20)) for _ in range(12)]  # This puts 96 MiB into a store of 80 MiB.
    try:
        ray_engine.map_shards(build_writer(), shards)
    finally:
        del held
    assert read(shards) == ALL


DRIVER = """
import sys, time
from pathlib import Path
from recgrit.embedding.cache import encode_cached
from recgrit.engines.config import EngineConfig
from recgrit.engines.engine import start_engine
from recgrit.engines.local import LocalEngine
from recgrit.engines.shards import Shards

def build():
    def write(rows, path):
        time.sleep(0.5)
        path.write_text(",".join(map(str, range(rows.start, rows.stop))))
    return write

config = EngineConfig(kind="ray", address=sys.argv[1], num_workers=1)
with start_engine(config) as engine:
    engine.map_shards(build, Shards("embed", Path(sys.argv[2]), 12, 2, ".txt"))
"""


def test_a_killed_driver_can_be_started_again(ray_engine, cluster, shards):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster, str(shards.folder)])
    deadline = time.monotonic() + 60
    while len(list(shards.folder.glob("*.json"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(1)  # Wait until the workers of the driver have ended.
    done = [number for number in range(6) if shards.is_done(number)]
    assert 2 <= len(done) < 6
    before = {number: shards.path(number).stat().st_mtime_ns for number in done}
    ray_engine.map_shards(build_writer(), shards)
    assert read(shards) == ALL
    assert {number: shards.path(number).stat().st_mtime_ns for number in done} == before


def test_a_run_on_ray_equals_a_local_one(new_config, cluster, tmp_path):
    sizes = {"shard_texts": 16, "shard_items": 16, "shard_users": 16}
    results = {}
    for kind, engine in {
        "local": sizes,
        "ray": sizes | {"kind": "ray", "address": cluster, "num_workers": 2},
    }.items():
        path = new_config(engine=engine, run={"dir": str(tmp_path / kind)})
        results[kind] = run_experiment(load_config(ExperimentConfig, path))
    assert results["local"].metrics() == results["ray"].metrics()
    for name in ("semantic_ids/semantic_ids.parquet", "recommendations/recommendations.parquet"):
        local, ray = (pl.read_parquet(tmp_path / kind / name) for kind in ("local", "ray"))
        assert local.equals(ray), name
    assert not (tmp_path / "ray" / ".shards").exists()


def test_processes_are_started_again_when_one_is_killed(cluster, ray_engine, tmp_path):
    """The processes start again together. Training then resumes from its checkpoint."""

    def work(report):
        import os
        import signal

        import torch
        import torch.distributed as dist

        total = torch.tensor(dist.get_rank() + 1)
        dist.all_reduce(total)
        died = tmp_path / "died"
        if dist.get_rank() == 1 and not died.exists():
            died.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / f"process-{dist.get_rank()}").write_text(str(int(total)))
        for epoch in (1, 2):
            report((dist.get_rank(), epoch))
        return {"process": dist.get_rank(), "total": int(total)}

    config, reported = EngineConfig(kind="ray", address=cluster, train_workers=2), []
    with start_engine(config) as engine:
        found = engine.run_on_processes(work, reported.append, tmp_path)
    assert (tmp_path / "died").exists()
    # Only the result and the reports of process 0 arrive in this process, each once.
    assert found == {"process": 0, "total": 3}
    assert reported == [(0, 1), (0, 2)]
    assert [(tmp_path / f"process-{number}").read_text() for number in (0, 1)] == ["3", "3"]


def test_an_error_during_training_is_raised(cluster, ray_engine, monkeypatch, tmp_path):
    from recgrit.engines import ray_engine as module

    monkeypatch.setattr(module, "MAX_TRAIN_FAILURES", 0)

    def work(report):
        raise ValueError("the loss became nan")

    config = EngineConfig(kind="ray", address=cluster, train_workers=1)
    with (
        start_engine(config) as engine,
        pytest.raises(EngineError, match=r"Training on Ray failed: .*the loss became nan"),
    ):
        engine.run_on_processes(work, lambda epoch: None, tmp_path)


def test_two_processes_on_ray_learn(new_config, cluster, ray_engine, tmp_path):
    engine = {"kind": "ray", "address": cluster, "num_workers": 1, "train_workers": 2}
    path = new_config(engine=engine, run={"dir": str(tmp_path / "run")})
    result = run_experiment(load_config(ExperimentConfig, path), until="train")
    assert set(result.seconds) == {"prepare", "embed", "tokenize", "train"}
    summary = read_manifest(tmp_path / "run" / "model").summary
    assert summary["best"]["valid_recall_at_10"] > 0.7
    epochs = pl.read_parquet(tmp_path / "run" / "model" / "epochs.parquet")
    assert epochs["epoch"].to_list() == list(range(1, summary["num_epochs"] + 1))
    assert not (tmp_path / "run" / ".training").exists()


def test_a_cluster_without_room_for_a_worker_is_refused(cluster, shards, ray_engine):
    config = EngineConfig(kind="ray", address=cluster, gpus_per_worker=2)
    with (
        start_engine(config) as engine,
        pytest.raises(EngineError, match=r"no room for 1 worker\(s\) with 1 and 2"),
    ):
        engine.map_shards(build_writer(), shards)


def test_a_training_error_keeps_its_message_and_is_not_retried(cluster, ray_engine, tmp_path):
    """A user's error keeps its own message, and the process is not started again."""
    lives = tmp_path / "lives"

    def work(report):
        from recgrit.errors import TrainingError

        with lives.open("a") as file:
            file.write(".")
        raise TrainingError("The loss became nan. Lower learning_rate.")

    config = EngineConfig(kind="ray", address=cluster, train_workers=1)
    with (
        start_engine(config) as engine,
        pytest.raises(EngineError, match=r"^The loss became nan\. Lower learning_rate\.$"),
    ):
        engine.run_on_processes(work, lambda epoch: None, tmp_path)
    assert lives.read_text() == "."
    assert not list(tmp_path.glob(".ray-*"))


def test_an_address_where_nothing_listens_is_refused_within_a_minute(new_config):
    command = [sys.executable, "-m", "recgrit", "run", str(new_config()), "engine=ray"]
    done = subprocess.run(
        [*command, "engine.address=127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Cannot connect to a Ray cluster at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"pip install \"recgrit\[ray\]\""),
        start_engine(EngineConfig(kind="ray")),
    ):
        pass


def test_ray_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with (
        pytest.raises(ConfigError, match="without torchrun"),
        start_engine(EngineConfig(kind="ray")),
    ):
        pass


@pytest.mark.parametrize(
    "overrides",
    [["engine=ray"], ["engine=ray", "engine.num_workers=3"], ["engine.kind=ray"]],
)
def test_the_engine_can_be_set_by_its_kind_alone(overrides):
    config = load_config(ExperimentConfig, overrides=overrides)
    assert config.engine.kind == "ray"
    assert (config.engine.num_workers == 3) == (len(overrides) == 2)
