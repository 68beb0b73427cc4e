"""The benchmarks run and say what they promise; their numbers are read on a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def last_line(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_assignment_agrees_with_a_flat_search():
    pytest.importorskip("faiss", reason="the benchmark's peer")
    found = last_line("assign.py", "--rows", "30000", "--repeats", "1")
    assert found["same_as_faiss"] > 0.999
    assert found["same_as_training"] > 0.999
    assert found["vs_faiss"] == pytest.approx(found["seconds"] / found["seconds_faiss"])


def test_training_step_is_faster_than_the_peers():
    pytest.importorskip("vector_quantize_pytorch", reason="install recgrit[benchmarks]")
    found = last_line("quantizer_step.py", "--repeats", "3")
    assert found["speedup_vs_residualvq_k4096"] > 1
    assert found["rss_growth_mb"] < found["rss_growth_mb_residualvq"]


def test_ids_become_unique_as_the_benchmark_says():
    found = last_line("collisions.py", "--rows", "20000")
    assert found["skewed_disambiguation_became"] == "disambiguation"
    assert found["even_greedy_became"] in {"greedy", "none needed"}
    assert found["even_greedy_seconds"] > 0


def test_training_is_faster_than_a_token_model():
    pytest.importorskip("transformers", reason="the benchmark's peer")
    found = last_line("train_throughput.py", "--repeats", "1", "--steps", "2", "--users", "300")
    assert found["speedup_vs_t5"] > 5
    assert found["parameters_t5"] == pytest.approx(4.6e6, rel=0.05)
    assert found["growth_with_users"] < 1.5


def test_recommending_is_faster_than_generate():
    pytest.importorskip("transformers", reason="the benchmark's peer")
    sizes = ("--users", "64", "--generate-users", "1", "--sizes", "20000")
    found = last_line("recommend_throughput.py", "--repeats", "1", *sizes)
    assert found["speedup_vs_hf_generate"] > 5
    assert found["users_per_second_history_200"] > 0
    assert found["speedup_vs_full_scoring_20000"] > 0


def test_a_trie_is_measured_at_each_size():
    found = last_line("trie_scale.py", "--repeats", "1", "--sizes", "1000,20000")
    assert found["bytes_per_item_20000"] < 100
    assert found["step_ms_1000"] > 0


def test_node_buckets_are_smaller_and_faster():
    found = last_line("node_buckets.py", "--steps", "1", "--items", "30000", "--buckets", "1024")
    assert found["nodes_buckets"] == found["nodes_all"] > 60_000
    assert found["parameters_buckets"] < 0.1 * found["parameters_all"]
    assert found["peak_mb_buckets"] < found["peak_mb_all"]
    assert found["search_ms_buckets"] > 0


def test_the_cost_of_stages_is_measured_and_fitted(tmp_path):
    arguments = ("--stages", "train_buckets", "--sizes", "1e3,4e3", "--out", str(tmp_path))
    found = last_line("scaling.py", *arguments)
    assert [row["size"] for row in found["rows"]] == [1000, 4000]
    assert all(row["cpu_seconds"] > 0 and row["peak_rss_mb"] > 100 for row in found["rows"])
    kept = last_line("scaling.py", "--fit", str(tmp_path))
    assert kept["fits"] == found["fits"]
    assert kept["fits"]["train_buckets.peak_rss_mb"]["worst"] < 0.2
