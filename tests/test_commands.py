"""Run every documented command on small data, or name the reason why it is not run.

The commands come from README, the docs and the help texts. If a new command needs a file, add it to
`INPUTS`. If it names the reader's own data, replace them in `SUBSTITUTIONS`. If it cannot run here,
add it to `NOT_RUN`.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from tests.documented import ROOT, collect

# Replacements of a reader's own names by names of the tests, in this order.
SUBSTITUTIONS = {
    # Processes of a launcher run the same command.
    r"^(?:srun )?torchrun .*-m recgrit ": "recgrit ",
    r" engine=ray| engine\.(?!shard)\S+": "",
    r"data\.source=amazon2018/\S+ data\.path=\S+": (
        "data.source=amazon2018/Gift_Cards data.path=gift-cards"
    ),
    r"data\.source=recbole data\.path=\S+": "data.source=recbole data.path=atomic-files",
    r"data\.path=(?:FOLDER|FILES|…|/path/to/\S+)": "data.path=ml-100k",
    r"items_path=items\.csv": "items_path=skus.csv",
    # The reader's shop.yaml already names the file of users. The config of the tests does not.
    r"shop\.yaml (?=.*(?:segments|_attributes))(?!.*users_path)": (
        "shop.yaml data.table.users_path=customers.csv "
    ),
    r"shop\.yaml (?=.*users_path)": (
        "shop.yaml data.source=table data.path=log.csv data.table.items_path=skus.csv "
        "data.table.user_id=uid data.table.item_id=sku data.table.timestamp=at "
    ),
    r"init --events \S+ --items \S+ --users \S+$": (
        "init --events log.csv --items skus.csv --users customers.csv "
        "data.table.user_id=uid data.table.item_id=sku data.table.timestamp=at"
    ),
    r"init --events \S+ --items \S+": "init --events log.csv --items skus.csv",
    r"/shared/": "",
    r"codebook_size=\d+": "codebook_size=8",
    r"\bCONFIG\b": "configs/movielens-100k.yaml",
    r"\bRUN\.\.\.": "runs/wider",
    r"\bRUN\b": "runs/movielens-100k",
    r"\bFOLDER\b": "folder",
    r"\bFILE\b": "lists.parquet",
    r"\bLISTS\b": "recbole-top20.csv",
    r"--user \S+": "--user 1",
    r"--after \S+": "--after 1",
    r"inspect item \S+": "inspect item 1",
    r"(?<=similar )(.*) (50|SKU-\d+|ITEM)\b": r"\1 1",
    r"\bBUNDLE\b": "bundles/monday",
    r"\bITEMS_FILE\b": "items.csv",
    r"\bWAY\b": "embedding",
}

# Patterns of commands that do not run here, with the reason and the test that covers them.
NOT_RUN = {
    r"recgrit --install-completion": "changes the shell's settings; tests/test_help.py completes",
    r"(mlflow|curl) ": "needs a server; tests/serving/test_pyfunc.py serves a model over HTTP",
    # tests/training/test_processes.py covers torchrun --max-restarts, and
    # tests/engines/test_ray_engine.py covers ray start.
    r"(cat|echo|\.|python3 -m venv|pre-commit|pytest) |(torchrun --max-restarts|ray start)$": (
        "no command of recgrit"
    ),
    r"recgrit run shop\.yaml features\.blocks\.image\.column": (
        "needs the weights of a vision model; tests/embedding makes a small one"
    ),
    r"recgrit run shop\.yaml embedding\.encoder=static": (
        "needs the weights of a sentence encoder; tests/embedding distils a small one"
    ),
    r"python make_shop\.py": "the page shows the script; tested below",
    r"(make|pip) ": "tested below for what they name",
    r"python (?!pipelines/nightly_batch)": "hours; tested below for its options",
}

DOCUMENTED = collect()


def is_run(text: str) -> bool:
    return not any(re.match(pattern, text) for pattern in NOT_RUN)


def substitute(text: str) -> str:
    for pattern, ours in SUBSTITUTIONS.items():
        text = re.sub(pattern, ours, text)
    return text


COMMANDS = sorted({substitute(one.text) for one in DOCUMENTED if is_run(one.text)})


# Functions that make the files of the commands: workspace, finished run and its bundle.


def write_config(path: Path, run: Any) -> None:
    """Write the settings of the finished run, with the run folder of the config of this name."""
    values = yaml.safe_load((run.directory / "config.yaml").read_text())
    ours = ROOT / "configs" / path.name
    folder = {"dir": f"runs/{path.stem}"}
    values["run"] = yaml.safe_load(ours.read_text()).get("run", {}) if ours.exists() else folder
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values | {"tracking": {"backend": "none"}}))


def copy_run(path: Path, run: Any) -> None:
    shutil.copytree(run.directory, path)
    write_config(path / "config.yaml", run)


def write_gift_cards(folder: Path, run: Any) -> None:
    """Write the small data in Amazon's format."""
    rows = [line.split("\t") for line in (run.data / "u.data").read_text().splitlines()]
    reviews = [
        {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": 10**9 + int(time)}
        for user, item, _, time in rows
    ]
    items = sorted({review["asin"] for review in reviews})
    titles = [{"asin": item, "title": f"Card number {item}"} for item in items]
    folder.mkdir()
    for name, lines in (("Gift_Cards_5", reviews), ("meta_Gift_Cards", titles)):
        text = "\n".join(map(json.dumps, lines)) + "\n"
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))


def write_log(path: Path, run: Any) -> None:
    """Write the small data as a table, with default column names and with a reader's own."""
    names = ["uid", "sku", "stars", "at"]
    table = pl.read_csv(run.data / "u.data", separator="\t", has_header=False, new_columns=names)
    table.with_columns(user_id="uid", item_id="sku", timestamp="at").write_csv(path)


def write_events(path: Path, run: Any) -> None:
    """Write the table with a shop's column names, packed by gzip."""
    names = {"uid": "customer", "at": "event_time"}
    write_log(path.with_suffix(""), run)
    log = pl.read_csv(path.with_suffix("")).select("uid", "sku", "at").rename(names)
    path.write_bytes(gzip.compress(log.write_csv().encode()))


def write_clicks(path: Path, run: Any) -> None:
    """Write a log with event types, in which every third event is a purchase."""
    write_log(path.with_suffix(""), run)
    log = pl.read_csv(path.with_suffix("")).select("user_id", "item_id", "timestamp")
    kinds = pl.Series("event", ["view", "cart", "purchase"] * log.height)[: log.height]
    path.write_bytes(gzip.compress(log.with_columns(kinds).write_csv().encode()))


def write_items(path: Path, run: Any) -> None:
    kinds = {"category": ["soap", "oil"] * 20, "brand": ["Dove", "Alba"] * 20}
    things = pl.DataFrame({"sku": range(1, 41), "title": "A thing", "name": "A thing"} | kinds)
    things.with_columns(price_eur=pl.col("sku") / 2).write_csv(path)


def write_customers(path: Path, run: Any) -> None:
    people = pl.DataFrame({"uid": range(1, 61), "age": range(20, 80)})
    people.with_columns(plan=pl.lit("paid"), segment=pl.lit("new")).write_csv(path)


def write_atomic_files(folder: Path, run: Any) -> None:
    from recgrit.export import export_recbole
    from recgrit.runs import Run

    export_recbole(Run(run.directory).data, folder, "own")


def write_lists(path: Path, run: Any) -> None:
    table = pl.read_parquet(run.directory / "recommendations" / "recommendations.parquet")
    table.select("user_id", "item_id", "rank").write_csv(path)


def write_histories(path: Path, run: Any) -> None:
    pl.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["1", "5", "2"]}).write_parquet(path)


def export_bundle_of(path: Path, run: Any) -> None:
    from recgrit.runs import Run
    from recgrit.serving.writing import export_bundle

    export_bundle(Run(run.directory), path)


def write_vectors(path: Path, run: Any) -> None:
    """Write a vector of four numbers for each item."""
    items = pl.read_parquet(run.directory / "data" / "items.parquet").select("item_id")
    vectors = [[float(n), float(n * n % 7), float(n % 3), 1.0] for n in range(items.height)]
    items.with_columns(pl.Series("vector", vectors)).write_parquet(path)


def write_own_model(path: Path, run: Any) -> None:
    """Write the module that docs/how-to/own_model.md shows."""
    page = (ROOT / "docs" / "how-to" / "own_model.md").read_text(encoding="utf-8")
    (module,) = re.findall(r"```python\n(# own_models\.py.*?)```", page, re.DOTALL)
    (path.parent / "own_models.py").write_text(module)


def later_items() -> pl.DataFrame:
    """Write two items that are not in the run."""
    return pl.DataFrame({"item_id": ["new 1", "new 2"], "title": ["Star Robot", "Paris Heart"]})


INPUTS: dict[str, Callable[[Path, Any], object]] = {
    r"runs/[\w-]+(/trials/\d+)?": copy_run,
    r"runs/[\w-]+/winner\.yaml": write_config,
    r"(configs/)?[\w-]+\.yaml": write_config,
    r"bundles/\w+": export_bundle_of,
    r"ml-100k": lambda path, run: shutil.copytree(run.data, path),
    r"gift-cards": write_gift_cards,
    r"atomic-files": write_atomic_files,
    r"log\.csv": write_log,
    r"events\.csv\.gz": write_events,
    r"clicks\.csv\.gz": write_clicks,
    r"skus\.csv": write_items,
    r".*\bown_models\.NextItem\b.*": write_own_model,
    r"(items|new)\.csv": lambda path, run: later_items().write_csv(path),
    r"items\.parquet": lambda path, run: later_items().write_parquet(path),
    r"(vectors|prices)\.parquet": write_vectors,
    r"customers\.csv": write_customers,
    r"gone\.txt": lambda path, run: path.write_text("3\n"),
    r"recbole-top20\.csv": write_lists,
    r"histories\.parquet": write_histories,
}


@pytest.fixture
def workspace(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Make a folder with the finished run of README and all files that commands name."""

    def make(text: str) -> Path:
        read = re.sub(r"--out \S+|\b(?:run\.dir|out)=\S+", "", text)
        named = {"runs/movielens-100k", *(word.split("=")[-1] for word in shlex.split(read))}
        for name in named:
            for pattern, write in INPUTS.items():
                if re.fullmatch(pattern, name):
                    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                    write(tmp_path / name, tiny_run)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("text", [text for text in COMMANDS if text.startswith("recgrit ")])
def test_it_runs_as_documented(
    text: str,
    workspace: Callable[..., Path],
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    folder = workspace(text)
    words = shlex.split(text)
    done = command(*words[1:])
    assert done.code == 0, done.err
    assert bool(opened) == ("--open" in words)
    if "--out" in words:
        assert (folder / words[words.index("--out") + 1]).exists()


@pytest.mark.parametrize("text", [text for text in COMMANDS if text.startswith("python ")])
def test_a_script_runs_as_documented(text: str, workspace: Callable[[str], Path]) -> None:
    folder = workspace(text)
    words = shlex.split(text)[1:]
    done = subprocess.run(
        [sys.executable, ROOT / words[0], *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def read_code(page: str, number: int = 0) -> str:
    """Return a page's block of Python code by its number, from 0."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


def test_the_shop_of_the_tutorial_can_be_made_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    """The page's script writes the files for its next command, with the numbers that it shows."""
    monkeypatch.chdir(tmp_path)
    exec(compile(read_code("tutorials/shop.md"), "make_shop.py", "exec"), {})
    done = command("init", "--events", "events.csv", "--items", "items.csv", "--out", "shop.yaml")
    assert done.code == 0, done.err
    page = (ROOT / "docs/tutorials/shop.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    written = (tmp_path / "shop.yaml").read_text(encoding="utf-8")
    assert set(shown.splitlines()) <= set(written.splitlines())


def test_the_loop_with_a_quantizer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(read_code("how-to/own_quantizer.md"), "loop.py", "exec"), names)
    assert names["codes"].shape == (4096, 3)


@pytest.mark.parametrize("number", [0, 1])
def test_the_look_ups_lead_back_to_the_item(
    number: int,
    workspace: Callable[[str], Path],
    command: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    workspace("recgrit export table --run runs/movielens-100k")
    done = command("export", "table", "--run", "runs/movielens-100k", "--out", "tables")
    assert done.code == 0, done.err
    code = read_code("how-to/item_id_tables.md", number).replace('"50"', '"5"')
    capfd.readouterr()
    exec(compile(code, "look_up.py", "exec"), {})
    assert capfd.readouterr().out == "5\n"


def test_scripts_have_the_options_that_are_documented() -> None:
    for one in DOCUMENTED:
        if one.program == "python" and not one.text.startswith("python make_shop.py"):
            script = ROOT / one.text.split()[1]
            assert script.is_file(), one
            source = script.read_text()
            for name in re.findall(r" --([\w-]+)", one.text):
                # The option is an argument of argparse, or a parameter of typer.
                assert f'"--{name}"' in source or f"{name.replace('-', '_')}: " in source, one


def test_all_settings_in_documented_commands_exist() -> None:
    taken = 0
    for one in DOCUMENTED:
        words = shlex.split(one.text)
        overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
        if overrides and not re.search(r"nightly_batch\.py|own_models\.", one.text):
            load_config(ExperimentConfig, None, overrides)
            taken += 1
    assert taken > 10


def test_make_and_pip_are_given_what_there_is() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for one in DOCUMENTED:
        if one.program == "make":
            assert set(one.text.split()[1:]) <= targets, one
        if one.program == "pip":
            extras = {e for group in re.findall(r"\[(.*?)\]", one.text) for e in group.split(",")}
            assert extras <= set(project["optional-dependencies"]), one


def test_no_command_is_left_out() -> None:
    known = re.compile("recgrit |python pipelines/")
    left = [one for one in DOCUMENTED if is_run(one.text) and not known.match(substitute(one.text))]
    assert left == [], "say in NOT_RUN why, or how it is run"
    for pattern in NOT_RUN:
        assert any(re.match(pattern, one.text) for one in DOCUMENTED), (
            f"{pattern} is documented no more"
        )
    assert len(COMMANDS) > 30
