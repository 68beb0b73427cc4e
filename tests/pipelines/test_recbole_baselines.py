"""RecBole's lists are kept and evaluated. RecBole itself runs only if an interpreter has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recgrit.evaluation.report import EvaluationReport
from recgrit.manifests import read_manifest

PIPELINES = Path(__file__).parents[2] / "pipelines"
INTERPRETER = "RECGRIT_TEST_RECBOLE_PYTHON"

# A stub replaces RecBole's interpreter. It reads the exported file as RecBole would. Even rows get
# a list with their target behind items of their history, and odd rows a list without their target.
STUB = """#!{python}
import csv, json, sys
from pathlib import Path

folder, name, model = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True)
lines = (folder / f"{{name}}.inter").read_text().splitlines()[1:]
taken = {{}}
for user, item, _ in (line.split("\\t") for line in lines):
    taken.setdefault(user, []).append(item)
catalogue = sorted({{item for items in taken.values() for item in items}}, key=int)
with (out / "lists.csv").open("w") as lists, (out / "targets.csv").open("w") as targets:
    print("row,user_id,item_id,rank", file=lists)
    print("row,user_id,item_id,rank,history", file=targets)
    for row, (user, (*history, target)) in enumerate(taken.items()):
        if {wrong_target} and row == 3:
            target = next(item for item in catalogue if item != target)
        print(f"{{row}},{{user}},{{target}},1,{{' '.join(history)}}", file=targets)
        seen = [] if model == "BPR" else list(dict.fromkeys(history))[:2]
        listed = [*seen, *([target] if row % 2 == 0 else [])]
        rest = [i for i in catalogue if i not in {{*listed, target}}]
        if model == "BPR":
            rest = [i for i in rest if i not in history]
        for rank, item in enumerate(dict.fromkeys([*listed, *rest]), start=1):
            print(f"{{row}},{{user}},{{item}},{{rank}}", file=lists)
samples = sum(len(items) - 2 - (model != "BPR") for items in taken.values())
result = {{
    "metrics": {{"recall@10": 0.5, "ndcg@10": 0.25}}, "masked": model == "BPR",
    "fit_seconds": 1.5, "epochs": 2.25, "parameters": 7,
    "num_items": len(catalogue), "num_train": samples,
}}
(out / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def run_baselines(
    new_config: Callable[..., Path], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        places = ["--out", tmp_path / "out", "--python", python]
        command = [sys.executable, PIPELINES / "recbole_baselines.py", new_config()]
        return subprocess.run(
            [*map(str, [*command, *places]), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def stub(tmp_path: Path) -> Callable[..., Path]:
    def write(*, wrong_target: bool = False) -> Path:
        path = tmp_path / "python"
        path.write_text(STUB.format(python=sys.executable, wrong_target=wrong_target))
        path.chmod(0o755)
        return path

    return write


def test_lists_are_kept_and_evaluated(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]],
    stub: Callable[..., Path],
    tmp_path: Path,
) -> None:
    options = ["--models", "SASRec,BPR", "--budget", "5", "--seeds", "3"]
    done = run_baselines(stub(), *options)
    assert done.returncode == 0, done.stderr
    # The stub reports a right Recall only for unmasked lists. A warning shows where it is wrong.
    assert "recall_at_10 of the same lists: 0.500000 by the library, 0." in done.stderr
    sasrec, bpr = (tmp_path / "out" / f"{model}-3" for model in ("SASRec", "BPR"))
    for folder in (sasrec, bpr):
        summary = read_manifest(folder).summary
        assert [summary[name] for name in ("fit_seconds", "epochs", "parameters")] == [1.5, 2.25, 7]
        assert summary["metrics_by_library"] == {"recall_at_10": 0.5, "ndcg_at_10": 0.25}
    assert not (bpr / "test").exists(), "RecBole lists unseen items only for it"
    unmasked = EvaluationReport.load(sasrec / "test")
    assert len(unmasked.ranks) == 60
    # The target is behind two items of the history, or it is one of them.
    assert set(unmasked.ranks) <= {0, 1, 2, 3}
    assert (unmasked.ranks == 3).sum() >= 20
    for folder in (sasrec, bpr):
        masked = EvaluationReport.load(folder / "test_masked")
        # A target that is in the history is filtered out with it, even if RecBole listed it.
        assert set(masked.ranks) == {0, 1}
        assert masked.means["recall_at_10"] <= unmasked.means["recall_at_10"]
        assert masked.protocol["masked"]
    assert done.stdout.count("SASRec-3") == 2
    assert done.stdout.count("BPR-3") == 1
    again = run_baselines(tmp_path / "gone", *options)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("-3: up to date") == 2
    assert "No such file" in run_baselines(tmp_path / "gone", *options[:2], "--seeds", "4").stderr


def test_kept_lists_score_as_their_report_says(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]],
    stub: Callable[..., Path],
    command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    assert run_baselines(stub(), "--models", "SASRec").returncode == 0
    kept = tmp_path / "out" / "SASRec-0" / "test"
    scored = command("score", kept / "lists.parquet", "--run", tmp_path / "out" / "run", "--json")
    assert scored.json()["metrics"] == pytest.approx(EvaluationReport.load(kept).means)


def test_another_split_is_refused(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]],
    stub: Callable[..., Path],
    tmp_path: Path,
) -> None:
    done = run_baselines(stub(wrong_target=True), "--models", "SASRec")
    assert done.returncode == 1
    assert "RecBole reads another split: 1 test targets or histories differ" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "SASRec-0").exists()


def test_an_interpreter_that_fails(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_baselines(tmp_path / "nowhere")
    assert done.returncode == 1
    assert "No such file" in done.stderr
    done = run_baselines(Path("/bin/false"), "--models", "BPR")
    assert "ended with 1: nothing was said" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_recbole_itself(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, split: str
) -> None:
    python = os.environ.get(INTERPRETER)
    if python is None:
        pytest.skip(f"name an interpreter that has RecBole in {INTERPRETER}")
    models = "GRU4Rec,BPR" if split == "leave_one_out" else "GRU4Rec"
    done = run_baselines(Path(python), f"data.split={split}", "--models", models, "--budget", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("test targets are ours") == len(models.split(","))
    folder = tmp_path / "out" / "GRU4Rec-0"
    means = EvaluationReport.load(folder / "test").means
    for name, value in read_manifest(folder).summary["metrics_by_library"].items():
        assert means[name] == pytest.approx(value, abs=1e-6)
