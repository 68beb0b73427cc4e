"""User errors end with exit code 2 and one helpful message, and leave no partial output."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

if TYPE_CHECKING:
    Command = Callable[..., Any]
    NewConfig = Callable[..., Path]
    FinishedRun = Any


def assert_refused(result: Any, *phrases: str) -> None:
    """Assert that there is one panel with these phrases, regardless of line breaks."""
    told = "".join(result.error_message().split())
    for phrase in phrases:
        assert "".join(phrase.split()) in told, f"{phrase!r} not in {result.error_message()!r}"
    assert result.out == ""


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def built(tmp_path: Path) -> list[str]:
    """Return all names in the folder of the new run."""
    run = tmp_path / "runs" / "new"
    return sorted(path.name for path in run.iterdir()) if run.exists() else []


@pytest.fixture
def broken_data(tiny_data: Path, tmp_path: Path) -> Path:
    """Return a copy of the small catalogue that a test may damage."""
    return shutil.copytree(tiny_data, tmp_path / "broken")


# Tests of raw files


def test_no_data_path(new_config: NewConfig, tmp_path: Path, command: Command) -> None:
    config = new_config(data={"source": "recbole", "path": None})
    assert_refused(command("run", config), "data.path is not set", ".inter", "set data.path=FOLDER")
    assert built(tmp_path) == []


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_data_path_that_does_not_exist(
    new_config: NewConfig, tmp_path: Path, command: Command, force: tuple[str, ...]
) -> None:
    done = command("run", new_config(tmp_path / "nowhere"), "tracking.backend=mlflow", *force)
    assert_refused(
        done, f"No file or folder at {tmp_path / 'nowhere'}", "u.data", "check data.path"
    )
    assert not (tmp_path / "runs").exists(), "not even a tracked run"


def test_wrong_folder(new_config: NewConfig, tmp_path: Path, command: Command) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("miaow")
    done = command("prepare", new_config(tmp_path / "photos"))
    assert_refused(done, "expected u.data and u.item", "found cat.jpg", "Set data.path")
    assert built(tmp_path) == []


def test_truncated_gzip(new_config: NewConfig, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "amazon"
    folder.mkdir()
    review = {"reviewerID": "u", "asin": "i", "unixReviewTime": 1, "overall": 5.0}
    packed = gzip.compress(
        "\n".join(json.dumps(review | {"asin": str(i)}) for i in range(500)).encode()
    )
    (folder / "reviews_Beauty_5.json.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress(b"{'asin': '1'}\n"))
    done = command("run", new_config(folder, data={"source": "amazon2014/Beauty"}))
    assert_refused(
        done, "reviews_Beauty_5.json.gz is a damaged or incomplete gzip", "Download it again"
    )
    assert built(tmp_path) == []


def test_a_web_page_instead_of_data(
    new_config: NewConfig, broken_data: Path, tmp_path: Path, command: Command
) -> None:
    (broken_data / "u.item").write_text("<!DOCTYPE html><html><body>404</body></html>")
    assert_refused(command("run", new_config(broken_data)), "u.item is an HTML page, not data")
    assert built(tmp_path) == []


def spoil(file: Path, lines: tuple[int, ...]) -> int:
    """Cut these lines, counted from 1, and return their number."""
    texts = file.read_text().splitlines()
    for line in lines:
        texts[line - 1] = texts[line - 1].split("\t")[0]
    file.write_text("\n".join(texts) + "\n")
    return len(texts)


def test_many_malformed_lines(
    new_config: NewConfig, broken_data: Path, tmp_path: Path, command: Command
) -> None:
    number = spoil(broken_data / "u.data", tuple(range(7, 107)))
    done = command("run", new_config(broken_data))
    assert_refused(done, f"100 of {number} lines are malformed, the first at line 7, 8, 9", "tabs")
    assert built(tmp_path) == []


def test_few_malformed_lines_are_counted(
    new_config: NewConfig, broken_data: Path, command: Command
) -> None:
    number = spoil(broken_data / "u.data", (3, 5, 500))
    done = command("prepare", new_config(broken_data), "--json")
    assert done.code == 0
    folder = Path(done.json()["artifacts"]["prepare"])
    (row,) = [r for r in pl.read_parquet(folder / "funnel.parquet").rows() if r[0] == "malformed"]
    assert row[1] == number - 3
    assert row[4] == 3
    (shown,) = [line.split() for line in done.out.splitlines() if line.startswith(" malformed")]
    assert shown == ["malformed", str(number - 3), "3"]


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        (
            "data.min_user_interactions=1000",
            "Lower data.min_user_interactions or data.min_item_int",
        ),
        ("data.min_item_interactions=1000", "items with fewer than 1000"),
        ("data.min_weight=6", "No interaction has a weight of at least 6; the largest is 5"),
    ],
)
def test_filters_that_leave_nothing(
    new_config: NewConfig, tmp_path: Path, command: Command, override: str, phrase: str
) -> None:
    assert_refused(command("run", new_config(), override), phrase)
    assert built(tmp_path) == []


def test_item_ids_that_contradict_each_other(
    new_config: NewConfig, broken_data: Path, tmp_path: Path, command: Command
) -> None:
    file = broken_data / "u.item"
    lines = file.read_text(encoding="latin-1").splitlines()
    lines[5] = lines[5].replace(lines[5].split("|")[0], "3", 1)
    file.write_text("\n".join(lines) + "\n", encoding="latin-1")
    done = command("run", new_config(broken_data))
    assert_refused(done, "Item ids must be unique", "describes 1 ids more than once", "'3'")
    assert built(tmp_path) == []


def test_users_with_too_few_interactions_to_evaluate(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    lines = [f"{user}\t{item}\t5\t{item}" for user in range(9) for item in (1, 2)]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    (folder / "u.item").write_text("1|A (1990)|||x|" + "|".join("0" * 19) + "\n")
    config = new_config(
        folder,
        data={"min_user_interactions": 1, "min_item_interactions": 1},
        tokenizer={"codebook_size": 2},
    )
    assert_refused(command("run", config), "training")
    assert "model" not in built(tmp_path)


# Tests of ready-made vectors


def test_vectors_that_are_not_there(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    done = command("run", new_config(embedding=vectors(tmp_path / "none.npy")))
    assert_refused(done, f"No vectors at {tmp_path / 'none.npy'}", "embedding.vectors_path")
    assert built(tmp_path) == []


def vectors(path: Path) -> dict[str, Any]:
    return {"encoder": "vectors", "vectors_path": str(path)}


@pytest.mark.parametrize(
    ("rows", "value", "phrase"),
    [(40, float("nan"), "NaN or infinity"), (39, 0.0, "39"), (41, 0.0, "41")],
)
def test_vectors_that_do_not_fit(
    new_config: NewConfig, tmp_path: Path, command: Command, rows: int, value: float, phrase: str
) -> None:
    made = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    made[3, 2] = value or made[3, 2]
    np.save(tmp_path / "vectors.npy", made)
    done = command("run", new_config(embedding=vectors(tmp_path / "vectors.npy")))
    assert_refused(done, phrase)
    assert built(tmp_path) == ["config.yaml", "data"]


def test_changed_vectors_are_embedded_again(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    made = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", made)
    config = new_config(embedding=vectors(tmp_path / "vectors.npy"))
    assert command("embed", config).code == 0
    assert command("embed", config, "--json").json()["up_to_date"] == ["prepare", "embed"]
    np.save(tmp_path / "vectors.npy", made + 1)
    assert command("embed", config, "--json").json()["up_to_date"] == ["prepare"]


# Tests of settings


@pytest.mark.parametrize(
    ("override", "phrases"),
    [
        ("retriever.epoch=3", ("retriever.epoch: unknown key", "Did you mean retriever.epochs?")),
        ("retriver.epochs=3", ("retriver: unknown key", "Did you mean retriever?")),
        ("codebook_size=8", ("Did you mean tokenizer.codebook_size?",)),
        ("retriever.epochs=many", ("retriever.epochs", "valid integer", "'many'")),
        ("retriever.epochs", ("expected key=value",)),
        ("seed=[1", ("'seed=[1' is not valid YAML",)),
        ("data.source=netflix", ("Unknown data source 'netflix'", "movielens-100k")),
        ("tokenizer.codebook_size=[8,8,8]", ("lists 3 sizes for 2 levels",)),
        ("tokenizer.codebook_size=1", ("at least 2 on every level",)),
        ("retriever.num_heads=3", ("must be a multiple of num_heads 3",)),
        ("evaluation.beam_width=19", ("beam_width is 19", "lists of 20 items")),
        ("recommendation.top_k=21", ("beam_width is 20", "lists of 21 items")),
        ("evaluation.ks=[0]", ("list lengths must be positive",)),
        ("retriever.device=abacus", ("The device abacus of the model trie cannot", "to auto")),
        ("embedding.encoder=vectors", ("vectors_path=FILE work only together",)),
        ("tracking.backend=wandb", ("tracking.backend",)),
    ],
)
def test_settings_that_cannot_be_used(
    new_config: NewConfig, tmp_path: Path, command: Command, override: str, phrases: tuple[str, ...]
) -> None:
    assert_refused(command("run", new_config(), override), *phrases)
    assert built(tmp_path) == []


def test_an_unknown_key_in_the_file(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    config = new_config(tokenizer={"codebok_size": 16})
    assert_refused(
        command("run", config),
        f"1 setting(s) of {config}",
        "tokenizer.codebok_size: unknown key. Did you mean tokenizer.codebook_size?",
    )
    assert built(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("data: [1, 2\nrun: {", "is not valid YAML"),
        ("- data\n- run\n", "must hold 'key: value' lines"),
        ("data: movielens\n", "data"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, command: Command, text: str, phrase: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert_refused(command("run", tmp_path / "bad.yaml"), phrase)


def test_no_config_file(tmp_path: Path, command: Command) -> None:
    done = command("run", tmp_path / "none.yaml")
    assert_refused(done, f"No config file at {tmp_path / 'none.yaml'}")


@pytest.mark.parametrize(
    ("overrides", "phrase"),
    [
        (
            ["tokenizer.num_levels=1", "tokenizer.unique_ids=greedy"],
            "Codebooks of 8 codes give 8 IDs for 40 items: raise",
        ),
        (["tokenizer.codebook_size=64"], "64 is larger than the catalogue of 40 items"),
    ],
)
def test_codebooks_that_do_not_fit_the_catalogue(
    copied_run: Path, command: Command, overrides: list[str], phrase: str
) -> None:
    before = contents(copied_run)
    assert_refused(command("run", copied_run, *overrides), phrase)
    assert contents(copied_run) == before


# Tests of users, items and paths


def test_a_source_that_is_a_link_to_itself(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    config = new_config(retriever={"init_from": str(loop)})
    assert_refused(command("run", config), str(loop))
    assert built(tmp_path) == []


def test_an_unknown_user(tiny_run: FinishedRun, command: Command) -> None:
    done = command("recommend", "--run", tiny_run.directory, "--user", "1", "--user", "nobody")
    assert_refused(done, "Unknown user(s) 'nobody'", "60 users")


def test_no_user_and_no_file(tiny_run: FinishedRun, command: Command) -> None:
    assert_refused(command("recommend", "--run", tiny_run.directory), "--user ID", "--out FILE")


def test_an_unknown_item(tiny_run: FinishedRun, command: Command) -> None:
    done = command("inspect", "item", "[b]", "--run", tiny_run.directory)
    assert_refused(done, "No item '[b]' among the 40 items")


@pytest.mark.parametrize("arguments", [("recommend", "--user", "1"), ("inspect", "run")])
def test_a_folder_without_a_run(
    tmp_path: Path, command: Command, arguments: tuple[str, ...]
) -> None:
    assert_refused(command(*arguments, "--run", tmp_path), f"No run at {tmp_path}", "recgrit run")


def test_no_run_at_all(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command("recommend", "--user", "1"), "No run under runs/", "--run DIR")


def test_a_run_that_is_not_trained_yet(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    assert command("prepare", new_config()).code == 0
    done = command("recommend", "--run", tmp_path / "runs" / "new", "--user", "1")
    assert_refused(done, "No artifact at", "model", "recgrit run")


@pytest.mark.parametrize("backend", ["none", "mlflow"])
def test_a_file_where_the_run_should_be(
    new_config: NewConfig, tmp_path: Path, command: Command, backend: str
) -> None:
    (tmp_path / "runs").write_text("a file")
    done = command("run", new_config(), f"tracking.backend={backend}")
    assert_refused(done, "Cannot write the run to", "is a file", "run.dir=PATH")
    assert (tmp_path / "runs").read_text() == "a file"


@pytest.mark.parametrize(
    ("out", "phrase"), [("", "is a folder: name a file"), ("f/x", "Cannot write")]
)
def test_out_that_cannot_be_written(
    tiny_run: FinishedRun, tmp_path: Path, command: Command, out: str, phrase: str
) -> None:
    (tmp_path / "f").write_text("a file")
    arguments = ("recommend", "--run", tiny_run.directory, "--user", "1", "--out", tmp_path / out)
    assert_refused(command(*arguments), phrase)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_unreachable_tracking_server(
    new_config: NewConfig, tmp_path: Path, command: Command
) -> None:
    config = new_config(tracking={"backend": "mlflow", "uri": "http://127.0.0.1:9"})
    done = command("run", config)
    assert_refused(
        done, "Cannot start a run in MLflow at http://127.0.0.1:9", "tracking.backend=none"
    )
    assert built(tmp_path) == []


# Tests of artifacts


def test_a_checkpoint_of_another_id_table(
    copied_run: Path, tmp_path: Path, command: Command
) -> None:
    other = tmp_path / "runs" / "other"
    shutil.copytree(copied_run, other)
    assert command("tokenize", other, "seed=5").code == 0
    expected = json.loads((copied_run / "semantic_ids" / "manifest.json").read_text())
    shutil.rmtree(copied_run / "semantic_ids")
    shutil.copytree(other / "semantic_ids", copied_run / "semantic_ids")
    found = json.loads((copied_run / "semantic_ids" / "manifest.json").read_text())
    assert expected["fingerprint"] != found["fingerprint"]
    before = contents(copied_run)
    for arguments in (
        ("recommend", "--user", "1", "--run", copied_run),
        ("evaluate", copied_run),
    ):
        assert_refused(
            command(*arguments),
            expected["fingerprint"],
            found["fingerprint"],
            "was built from the tokenize artifact",
            f"recgrit run {copied_run}",
        )
    assert contents(copied_run) == before
    # The step that the message suggests works.
    assert command("run", copied_run).code == 0
    assert command("evaluate", copied_run).code == 0


def test_an_artifact_of_a_newer_release(copied_run: Path, command: Command) -> None:
    path = copied_run / "model" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 999}))
    before = contents(copied_run)
    for arguments in (
        ("run", copied_run),
        ("run", copied_run, "--force"),
        ("run", copied_run, "seed=9"),
        ("prepare", copied_run, "--force"),
        ("evaluate", copied_run),
        ("recommend", "--user", "1", "--run", copied_run),
        ("inspect", "run", "--run", copied_run),
    ):
        assert_refused(command(*arguments), "schema version 999", "Upgrade recgrit")
    assert contents(copied_run) == before


@pytest.mark.parametrize(
    "name",
    [
        "model/weights.safetensors",
        "semantic_ids/semantic_ids.parquet",
        "embeddings/features_vectors.npy",
        "data/interactions.parquet",
        "data/sequence_items.npy",
    ],
)
def test_damaged_files(copied_run: Path, command: Command, name: str) -> None:
    path = copied_run / name
    path.write_bytes(path.read_bytes()[:100])
    done = command("recommend", "--user", "1", "--run", copied_run)
    assert_refused(done, str(path.parent), "damaged", "Delete the folder and run")
    path.unlink()
    done = command("recommend", "--user", "1", "--run", copied_run)
    assert_refused(done, f"lacks {path.name}", "Delete the folder and run again")


def test_a_negative_seed_is_refused(
    new_config: NewConfig, command: Command, tmp_path: Path
) -> None:
    assert_refused(command("run", new_config(), "seed=-1"), "seed: Input should be greater")
    assert built(tmp_path) == []
