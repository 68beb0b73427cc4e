"""Test the command line on the small catalogue: its output, and which stages it runs again."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from rich.console import Console

from recgrit import __version__, display
from recgrit.cli import lists, look, use
from recgrit.layout import stage_directory
from recgrit.runs import Run

if TYPE_CHECKING:
    Command = Callable[..., Any]
    FinishedRun = Any

STAGES = [
    "prepare",
    "embed",
    "tokenize",
    "train",
    "baseline-popularity",
    "baseline-item_knn",
    "evaluate",
    "recommend",
]
# Commands of single stages. Only evaluate fits the baselines, because only it needs them.
COMMANDS = ("prepare", "embed", "tokenize", "train", "evaluate")
METRICS = ("recall_at_10", "ndcg_at_10")


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def redone(values: dict[str, Any]) -> list[str]:
    return [stage for stage in values["artifacts"] if stage not in values["up_to_date"]]


def test_run_reports_metrics_times_and_places_as_json(tiny_run: FinishedRun) -> None:
    values = tiny_run.result.json()
    assert values["model"] == "trie"
    assert set(values["baselines"]) == {"popularity", "item_knn"}
    for measured in (values, *values["baselines"].values()):
        for split in ("valid", "valid_masked", "test", "test_masked"):
            for metric in METRICS:
                assert 0 < measured[split][metric] <= 1
    assert values["num_users"] == 60
    assert list(values["seconds"]) == [*STAGES, "total"]
    assert 50 < values["peak_rss_mb"] < 20_000
    assert list(values["artifacts"]) == STAGES
    for stage, path in values["artifacts"].items():
        assert Path(path) == stage_directory(tiny_run.directory, stage)
        assert (Path(path) / "manifest.json").is_file()


def test_the_small_run_learns_the_pattern(tiny_run: FinishedRun) -> None:
    values = tiny_run.result.json()
    popularity = values["baselines"]["popularity"]
    for split in ("valid", "test"):
        assert values[split]["ndcg_at_10"] > 1.5 * popularity[split]["ndcg_at_10"]


def test_progress_goes_to_standard_error_and_nothing_else_does(tiny_run: FinishedRun) -> None:
    lines = tiny_run.result.err.splitlines()
    # Every line is one message of recgrit with its time. Lines of libraries, wrapped lines and
    # padding would fail.
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) and line == line.rstrip() for line in lines)
    headings = [line.split()[1:3] for line in lines if "/8] " in line]
    assert headings == [[f"[{i}/8]", f"{stage}:"] for i, stage in enumerate(STAGES, start=1)]
    assert not re.search(r"\[\d/6\]|epoch \d", tiny_run.result.out)


def test_run_shows_tables_places_and_next_steps(tiny_run: FinishedRun) -> None:
    shown = tiny_run.result.out
    for text in ("trie: beam of 40", "popularity", "item_knn", "test masked", "NDCG@10"):
        assert text in shown
    assert f"recgrit recommend --run {tiny_run.directory} --user " in shown
    assert "mlflow ui --backend-store-uri sqlite:///" in shown
    assert "\x1b" not in shown, "no colours in a pipe"


def test_a_second_run_changes_no_file(tiny_run: FinishedRun, command: Command) -> None:
    before = snapshot(tiny_run.directory.parent)
    second = command("run", tiny_run.directory.parent.parent / "tiny.yaml", "--json")
    assert second.code == 0
    assert second.err.count("up to date") == len(STAGES)
    assert "Every stage is up to date" in second.out
    values, first = second.json(), tiny_run.result.json()
    assert values["up_to_date"] == STAGES
    assert values["seconds"]["total"] == 0
    for key in ("model", "valid", "test", "test_masked", "baselines", "artifacts", "num_users"):
        assert values[key] == first[key]
    assert snapshot(tiny_run.directory.parent) == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("retriever.epochs=2", ["train", "evaluate", "recommend"]),
        ("evaluation.beam_width=25", ["evaluate", "recommend"]),
        ("recommendation.top_k=5", ["recommend"]),
        ("tokenizer.epochs=1", ["tokenize", "train", "evaluate", "recommend"]),
        ("data.min_item_interactions=6", STAGES),
        ("item_knn.shrinkage=5", ["baseline-item_knn", "evaluate"]),
        ("evaluation.baselines=[popularity]", ["evaluate"]),
        ("sasrec.epochs=2", []),
        ("retriever.device=cpu", []),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(
    copied_run: Path, command: Command, override: str, expected: list[str]
) -> None:
    before = snapshot(copied_run)
    done = command("run", copied_run, override, "--json")
    assert done.code == 0, done.err
    assert redone(done.json()) == expected
    for stage in set(STAGES) - set(expected):
        folder = str(stage_directory(copied_run, stage).relative_to(copied_run))
        after = snapshot(copied_run)
        for name, stamp in before.items():
            if name.startswith(f"{folder}/"):
                assert after[name] == stamp, name


def test_a_reverted_setting_gives_the_same_result_again(
    copied_run: Path, command: Command, tiny_run: FinishedRun
) -> None:
    assert command("run", copied_run, "retriever.epochs=2").code == 0
    back = command("run", copied_run, "retriever.epochs=4", "--json")
    assert redone(back.json()) == ["train", "evaluate", "recommend"]
    assert back.json()["test"] == tiny_run.result.json()["test"]


def test_force_redoes_everything(copied_run: Path, command: Command, tiny_run: FinishedRun) -> None:
    done = command("run", copied_run, "--force", "--json")
    assert redone(done.json()) == STAGES
    assert done.json()["valid"] == tiny_run.result.json()["valid"]


def test_each_stage_has_a_command(new_config: Callable[..., Path], command: Command) -> None:
    config = new_config()
    shown = {
        "prepare": "k-core of 5 per user, 5 per item",
        "embed": "written to",
        "tokenize": "perplexity",
        "train": "Model trie: best epoch",
        "evaluate": "Recall@20",
    }
    for number, stage in enumerate(COMMANDS):
        done = command(stage, config, "--json")
        assert done.code == 0, done.err
        # The command evaluate first fits the baselines that it measures.
        assert redone(done.json()) == (STAGES[4:7] if stage == "evaluate" else [stage])
        assert done.json()["up_to_date"] == STAGES[:number]
        assert shown[stage] in done.out
    done = command("run", config, "--json")
    assert redone(done.json()) == ["recommend"]


def test_a_damaged_artifact_is_built_again(copied_run: Path, command: Command) -> None:
    (copied_run / "semantic_ids" / "semantic_ids.parquet").write_bytes(b"")
    (copied_run / "evaluation" / "trie" / "test" / "per_target.parquet").unlink()
    done = command("run", copied_run, "--json")
    assert done.code == 0, done.err
    assert redone(done.json())[0] == "tokenize"
    assert "evaluate" in redone(done.json())


def test_a_folder_without_a_readable_manifest_is_not_deleted(
    copied_run: Path, command: Command
) -> None:
    (copied_run / "semantic_ids" / "manifest.json").write_text("{")
    told = command("run", copied_run).error_message()
    assert "semantic_ids already exists and is not recgrit's tokenize" in told
    shutil.rmtree(copied_run / "semantic_ids")
    assert command("run", copied_run).code == 0


def test_recommend_prints_titles_and_scores(tiny_run: FinishedRun, command: Command) -> None:
    done = command("recommend", "--run", tiny_run.directory, "--user", "1", "-u", "2", "-k", "3")
    assert done.code == 0
    assert done.err == ""
    tables = done.out.split("User ")[1:]
    assert [table.splitlines()[0].strip() for table in tables] == ["1", "2"]
    for table in tables:
        assert re.search(r"1 +\d+ +[A-Z]\w+ [A-Z]\w+ \d+ +<a_\d+><b_\d+>\S* +-\d+\.\d\d", table)
        assert "latest first: " in table


def test_recommend_as_json(tiny_run: FinishedRun, command: Command) -> None:
    arguments = ("--run", tiny_run.directory, "--user", "7", "--user", "7", "--top-k", "4")
    values = command("recommend", *arguments, "--json").json()
    rows = values["recommendations"]
    assert values["num_rows"] == len(rows) == 4, "a user named twice is meant once"
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert list(rows[0]) == [
        "user_id",
        "rank",
        "item_id",
        "title",
        "semantic_id",
        "score",
        "source",
    ]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_recommend_writes_all_users(
    tiny_run: FinishedRun, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "deep" / "lists.parquet"
    done = command("recommend", "--run", tiny_run.directory, "--out", out, "--json")
    assert done.code == 0
    assert done.json() == {"run": str(tiny_run.directory), "num_rows": 600, "out": str(out)}
    frame = pl.read_parquet(out)
    assert frame["user_id"].n_unique() == 60
    # The command has the settings of the run, so it writes the same lists.
    written = tiny_run.directory / "recommendations" / "recommendations.parquet"
    assert frame.drop("score").equals(pl.read_parquet(written).drop("score"))
    assert [path.name for path in out.parent.iterdir()] == ["lists.parquet"]


def test_recommend_writes_named_users(
    tiny_run: FinishedRun, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "one.parquet"
    command("recommend", "--run", tiny_run.directory, "--user", "5", "--out", out)
    assert pl.read_parquet(out)["user_id"].unique().to_list() == ["5"]


def test_an_out_file_that_is_not_parquet_is_refused(
    tiny_run: FinishedRun, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "lists.csv"
    told = command("recommend", "--run", tiny_run.directory, "--out", out).error_message()
    assert "written as Parquet" in told
    assert not out.exists()


def test_recommend_respects_allowed_and_blocked_items(
    tiny_run: FinishedRun, command: Command, tmp_path: Path
) -> None:
    arguments = ("recommend", "--run", tiny_run.directory, "--user", "1", "-k", "40", "--json")

    def listed(*more: object) -> list[str]:
        rows = command(*arguments, *more).json()["recommendations"]
        return [row["item_id"] for row in rows]

    items = listed()
    allow, block = tmp_path / "allow.txt", tmp_path / "block.txt"
    allow.write_text("\n".join(items[:6]) + "\n\n")
    block.write_text(items[2])
    assert listed("--allow", allow, "--block", block) == items[:2] + items[3:6]
    allow.write_text("\n")
    assert "names no item" in command(*arguments, "--allow", allow).error_message()
    missing = command(*arguments, "--block", tmp_path / "none.txt").error_message()
    assert "Cannot read the item list" in missing


def test_a_changed_item_list_redoes_the_recommendations(
    copied_run: Path, command: Command, tmp_path: Path
) -> None:
    block = tmp_path / "block.txt"
    block.write_text("1\n2\n")
    run = ("--quiet", "run", copied_run, f"recommendation.blocked_items={block}", "--json")
    assert redone(command(*run).json()) == ["recommend"]
    path = copied_run / "recommendations" / "recommendations.parquet"
    assert not set(pl.read_parquet(path)["item_id"]) & {"1", "2"}
    assert redone(command(*run).json()) == []
    block.write_text("3\n")
    assert redone(command(*run).json()) == ["recommend"]
    assert "3" not in set(pl.read_parquet(path)["item_id"])


def test_recommend_gives_what_there_is(tiny_run: FinishedRun, command: Command) -> None:
    arguments = ("recommend", "--run", tiny_run.directory, "--user", "1", "-k", "500", "--json")
    done = command(*arguments)
    seen = set(Run(tiny_run.directory).history("1")["item_id"])
    assert done.json()["num_rows"] == 40 - len(seen)
    assert f"User 1 can be recommended only {40 - len(seen)} items" in done.err
    everything = command(*arguments, "--include-seen").json()
    assert everything["num_rows"] == 40
    assert seen <= {row["item_id"] for row in everything["recommendations"]}


def test_recommend_takes_the_newest_run(
    copied_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = copied_run.parent / "older"
    older.mkdir()
    (older / "config.yaml").write_text("seed: 0\n")
    os.utime(older / "config.yaml", (0, 0))
    monkeypatch.chdir(copied_run.parent.parent)
    done = command("recommend", "--user", "1", "--json")
    assert done.json()["run"] == "runs/copy"
    assert "Using the newest run, runs/copy." in done.err


def test_a_run_folder_of_any_name_is_a_config(
    copied_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_run.rename(copied_run.with_name("2024-01-01"))
    monkeypatch.chdir(copied_run.parent)
    done = command("run", "2024-01-01", "--json")
    assert done.code == 0, done.err
    assert done.json()["up_to_date"] == STAGES


def test_inspect_item(tiny_run: FinishedRun, command: Command) -> None:
    done = command("inspect", "item", "11", "--run", tiny_run.directory, "--json")
    assert done.code == 0
    values, table = done.json(), Run(tiny_run.directory).semantic_ids
    assert values["title"] in done.out.splitlines()[0]
    assert tuple(values["codes"]) == table.codes_of("11")
    assert values["semantic_id"] == table.text_of("11")
    assert values["relatives"], "eight codes for forty items: someone shares the first"
    for row in values["relatives"]:
        codes = table.codes_of(row["item_id"])
        shared = row["shared_levels"]
        assert codes[:shared] == table.codes_of("11")[:shared]
        assert row["title"] in done.out


def test_datasets_lists_what_can_be_read(command: Command) -> None:
    done = command("datasets", "--json")
    listed = done.json()["datasets"]
    assert {entry["source"] for entry in listed} >= {"movielens-32m", "amazon2023/<Category>"}
    assert all(entry["terms"] and entry["verified"] for entry in listed)
    assert "GroupLens" in done.out
    named = command("datasets", "amazon2018", "--json")
    assert "amazon2018/Gift_Cards" in named.out.splitlines()
    assert "Gift_Cards" in named.json()["categories"]
    assert (
        "There is no family of data sets 'netflix'"
        in command("datasets", "netflix").error_message()
    )


def test_inspect_run(tiny_run: FinishedRun, command: Command) -> None:
    done = command("inspect", "run", "--run", tiny_run.directory, "--json")
    assert done.code == 0
    values = done.json()
    assert set(values["stages"]) == set(STAGES)
    for manifest in values["stages"].values():
        assert manifest["fingerprint"] in done.out
    for text in ("exact duplicates", "perplexity", "parameters", "popularity test masked"):
        assert text in done.out


def test_inspect_shows_a_run_in_the_making(
    new_config: Callable[..., Path], tmp_path: Path, command: Command
) -> None:
    assert command("prepare", new_config()).code == 0
    done = command("inspect", "run", "--run", tmp_path / "runs" / "new", "--json")
    assert done.code == 0
    assert list(done.json()["stages"]) == ["prepare"]


def test_inspect_shows_what_does_not_fit_together(copied_run: Path, command: Command) -> None:
    assert command("tokenize", copied_run, "tokenizer.epochs=1").code == 0
    done = command("inspect", "run", "--run", copied_run)
    assert done.code == 0
    assert "another tokenize" in done.out


@pytest.mark.parametrize("width", [80, 130])
def test_tables_fit_the_terminal(
    tiny_run: FinishedRun, command: Command, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for module in (look, use, display, lists):
        monkeypatch.setattr(module, "output", Console(width=width))
    for arguments in (("inspect", "run"), ("inspect", "item", "3"), ("recommend", "--user", "9")):
        done = command(*arguments, "--run", tiny_run.directory)
        assert max(map(len, done.out.splitlines())) <= width
        assert "…" not in done.out, "nothing is cut off"


def test_quiet_says_no_more_than_results(copied_run: Path, command: Command) -> None:
    done = command("--quiet", "run", copied_run, "recommendation.top_k=3")
    assert done.code == 0
    assert done.err == ""


def test_version_and_usage_errors(command: Command) -> None:
    assert command("--version").out == f"recgrit {__version__}\n"
    for wrong in (("run", "--no-such-option"), ("no-such-command",), ("run",), ("inspect", "x")):
        done = command(*wrong)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert done.out == ""


def test_help_names_every_command_quickly(run_command: Command) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_command("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in ("run", *COMMANDS, "recommend", "inspect"):
        assert re.search(rf"^│ {name} ", done.out, re.MULTILINE)
    # CPU time does not grow when the computer is busy with other processes, unlike elapsed time.
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.7


def test_an_interrupt_keeps_finished_stages(
    new_config: Callable[..., Path],
    tmp_path: Path,
    command: Command,
    stop_in_training: Callable[..., Any],
) -> None:
    run = tmp_path / "runs" / "new"
    _, done = stop_in_training(new_config(), run, signal.SIGINT)
    assert done.code == 130
    assert "Interrupted: finished stages are kept" in done.err
    assert "Traceback" not in done.err
    kept = {"config.yaml", "data", "embeddings", "semantic_ids", ".training"}
    assert {path.name for path in run.iterdir()} == kept
    values = command("run", run, "retriever.epochs=1", "--json").json()
    assert values["up_to_date"] == ["prepare", "embed", "tokenize"]
    assert not (run / ".training").exists(), "nothing of a training is left once it is finished"


def test_short_lists_and_a_narrow_beam_can_be_evaluated(copied_run: Path, command: Command) -> None:
    narrow = ("evaluation.ks=[5]", "evaluation.beam_width=5", "recommendation.top_k=5")
    done = command("run", copied_run, *narrow, "--json")
    assert done.code == 0, done.err
    assert set(done.json()["test"]) == {"recall_at_5", "ndcg_at_5", "mrr_at_5", "serendipity_at_5"}
