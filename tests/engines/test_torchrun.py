"""Test two processes that torchrun starts, with gloo. One runs the stages and the other helps."""

import json
import os
import subprocess
import sys

import polars as pl
import pytest

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment


def torchrun(*arguments, timeout=120, **options):
    """Run two processes by torchrun, and return their output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return subprocess.run(
        [*launcher, "--standalone", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture
def config_path(new_config, tmp_path):
    """Write a config without dropout, because two processes would draw other numbers than one."""
    retriever = {"dropout": 0.0, "node_dropout": 0.0}
    engine = {"shard_texts": 16, "shard_items": 16, "shard_users": 16}
    return new_config(run={"dir": str(tmp_path / "two")}, retriever=retriever, engine=engine)


def test_two_processes_give_the_results_of_one(config_path, tmp_path):
    done = torchrun("-m", "recgrit", "run", config_path, "--json")
    assert done.returncode == 0, done.stderr
    # Only the process that ran the stages prints the result.
    assert done.stdout.count('"peak_rss_mb"') == 1
    two = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.stderr.count("[4/8] train") == 1

    overrides = [f"run.dir={tmp_path / 'one'}"]
    one = run_experiment(load_config(ExperimentConfig, config_path, overrides)).to_json()
    codes = [
        pl.read_parquet(tmp_path / name / "semantic_ids" / "semantic_ids.parquet")
        for name in ("one", "two")
    ]
    assert codes[0].equals(codes[1])
    for name in ("valid", "test", "test_masked"):
        for metric, value in one[name].items():
            assert two[name][metric] == pytest.approx(value, abs=0.02), (name, metric)
    lists = pl.read_parquet(tmp_path / "two" / "recommendations" / "recommendations.parquet")
    assert lists["user_id"].n_unique() == two["num_users"] == one["num_users"]
    assert not (tmp_path / "two" / ".shards").exists()
    assert not (tmp_path / "two" / ".training").exists()

    again = torchrun("-m", "recgrit", "run", config_path)
    assert again.returncode == 0, again.stderr
    assert "Every stage is up to date" in again.stdout


def test_an_invalid_setting_ends_both_processes(config_path):
    done = torchrun("-m", "recgrit", "run", config_path, "tokenizer.codebook_size=5000")
    assert done.returncode != 0
    assert done.stderr.count("larger than the catalogue") >= 1


KILLED = """
import os, signal, sys
from pathlib import Path
from recgrit import ranking

# Process 1 dies at its first list, once.
died, real = Path(sys.argv.pop(1)), ranking.recommend_items
def recommend_items(*arguments, **settings):
    if os.environ["RANK"] == "1" and arguments[2] == "all" and not died.exists():
        died.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **settings)
ranking.recommend_items = recommend_items

from recgrit.cli import main
main()
"""


def test_a_killed_process_is_started_again_with_all_others(config_path, tmp_path):
    script, died = tmp_path / "killed.py", tmp_path / "died"
    script.write_text(KILLED)
    done = torchrun(script, died, "run", config_path, max_restarts=1)
    assert died.exists()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("[7/8] evaluate: up to date") == 1
    lists = pl.read_parquet(tmp_path / "two" / "recommendations" / "recommendations.parquet")
    assert lists["user_id"].n_unique() == 60


RETURNED = """
import json
from pathlib import Path
import torch.distributed as dist
from recgrit.engines.config import EngineConfig
from recgrit.engines.engine import start_engine

def work(report):
    for epoch in (1, 2):
        report([dist.get_rank(), epoch])
    return {"process": dist.get_rank(), "of": dist.get_world_size()}

reported = []
with start_engine(EngineConfig()) as engine:
    if engine.is_leader:
        found = engine.run_on_processes(work, reported.append, Path())
        print(json.dumps([found, reported]))
    else:
        engine.follow()
"""


def test_the_result_and_the_reports_are_those_of_process_0(tmp_path):
    script = tmp_path / "returned.py"
    script.write_text(RETURNED)
    done = torchrun(script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"process": 0, "of": 2}, [[0, 1], [0, 2]]]
