"""RecBole's lists become rows of the leaderboard; RecBole itself where an interpreter has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"
INTERPRETER = "RECGRIT_TEST_RECBOLE_PYTHON"

# In place of RecBole's interpreter. It reads the exported file as RecBole would, and lists, best
# first: for even users their target after their history, for odd ones other items.
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
        places = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--python", python]
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


def test_lists_become_rows(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]],
    stub: Callable[..., Path],
    tmp_path: Path,
) -> None:
    done = run_baselines(stub(), "--models", "SASRec,BPR", "--budget", "5", "--seeds", "3")
    assert done.returncode == 0, done.stderr
    # The stub's claim is right for Recall of unmasked lists only, and is told where it is not.
    assert "recall@10 of the same lists: 0.500000 by RecBole, 0." in done.stderr
    board = pl.read_parquet(tmp_path / "out" / "board.parquet")
    assert board["model"].to_list() == ["RecBole SASRec, 5 s", "RecBole BPR, 5 s"]
    assert set(board["data"]) == {"movielens-100k"}
    assert board["seed"].to_list() == [3, 3]
    assert (
        board.select("fit_seconds", "epochs", "parameters", "num_users").rows()
        == [(1.5, 2.25, 7, 60)] * 2
    )
    assert board["recbole_ndcg_at_10"].to_list() == [0.25, 0.25]
    unmasked, none = board["test_ranks"].to_list()
    assert none is None
    assert board["test_recall_at_10"].to_list()[1] is None
    # Behind two items of the history, or where it stands itself among them.
    assert set(unmasked) <= {0, 1, 2, 3}
    assert unmasked.count(3) >= 20
    assert board["test_recall_at_10"][0] == sum(rank > 0 for rank in unmasked) / 60
    for masked, recall in board.select("test_masked_ranks", "test_masked_recall_at_10").iter_rows():
        # A target that the history holds is masked with it, whatever RecBole listed.
        assert set(masked) == {0, 1}
        assert recall == sum(masked) / 60
        assert sum(masked) <= sum(rank > 0 for rank in unmasked)
    again = run_baselines(
        tmp_path / "gone", "--models", "SASRec,BPR", "--budget", "5", "--seeds", "3"
    )
    assert again.returncode == 0, again.stderr
    report = [sys.executable, str(PIPELINES / "leaderboard_report.py"), str(tmp_path / "out")]
    subprocess.run(report, check=True)
    assert "| RecBole BPR, 5 s |  |" in (tmp_path / "out" / "tables.md").read_text()


def test_another_split_is_refused(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]],
    stub: Callable[..., Path],
    tmp_path: Path,
) -> None:
    done = run_baselines(stub(wrong_target=True), "--models", "SASRec")
    assert done.returncode == 1
    assert "RecBole reads another split: 1 test targets or histories differ" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "board.parquet").exists()


def test_an_interpreter_that_fails(
    run_baselines: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_baselines(tmp_path / "nowhere")
    assert done.returncode == 1
    assert "No such file" in done.stderr
    done = run_baselines(Path("/bin/false"), "--models", "BPR")
    assert "ended with 1: nothing was said" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
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
    board = pl.read_parquet(tmp_path / "out" / "board.parquet")
    first = board.row(0, named=True)
    for name in ("recall", "ndcg"):
        assert first[f"test_{name}_at_10"] == pytest.approx(
            first[f"recbole_{name}_at_10"], abs=1e-6
        )
