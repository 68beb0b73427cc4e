import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import polars as pl
import pytest
from safetensors.numpy import load_file

from recgrit.data.config import DataConfig
from recgrit.data.items import ItemTable
from recgrit.data.prepare import PreparedData, prepare
from recgrit.errors import DataError
from recgrit.export import export_recbole
from recgrit.runs import Run
from recgrit.semantic_ids.table import parse_semantic_id


def test_recbole_sees_the_same_sequences_and_targets(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    done = command("export", "recbole", "--run", tiny_run.directory, "--out", tmp_path, "--json")
    assert [Path(name).name for name in done.json()["files"]] == ["recgrit.inter", "recgrit.item"]
    original = Run(tiny_run.directory).data
    again = prepare(
        DataConfig(
            source="recbole", path=tmp_path, min_user_interactions=1, min_item_interactions=1
        )
    )
    assert again.interactions.user_ids.equals(original.interactions.user_ids)
    titles = dict(zip(original.items.item_ids, original.items.titles, strict=True))
    assert dict(zip(again.items.item_ids, again.items.titles, strict=True)) == titles
    for user in range(original.split.num_users):
        ids = [
            data.interactions.item_ids.gather(data.split.full_sequence(user)).to_list()
            for data in (original, again)
        ]
        assert ids[0] == ids[1]
    np.testing.assert_array_equal(again.split.test_targets, original.split.test_targets)


def test_fields_of_items_and_users_come_back_from_recbole_files(tmp_path: Path) -> None:
    source = tmp_path / "from"
    source.mkdir()
    rows = "".join(
        f"{user}\t{item}\t{time}\n" for user in "uvw" for time, item in enumerate("abcd")
    )
    (source / "s.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{rows}")
    (source / "s.item").write_text(
        "item_id:token\ttitle:token_seq\tgenres:token_seq\tprice:float\n"
        "a\tA film\tWar Drama\t2.5\nb\tB\t\t\nc\tC\tWar\t1.0\nd\tD\t\t\n"
    )
    (source / "s.user").write_text("user_id:token\tage:float\tjob:token\nw\t30\tcook\nu\t4\t\n")
    settings = {"source": "recbole", "min_user_interactions": 1, "min_item_interactions": 1}
    first = prepare(DataConfig(path=source, **settings))
    export_recbole(first, tmp_path / "to", "s")
    again = prepare(DataConfig(path=tmp_path / "to", **settings))
    assert again.items.frame.equals(first.items.frame)
    assert first.users is not None
    assert first.users["age"].to_list() == [4.0, None, 30.0]
    assert again.users is not None
    assert again.users.equals(first.users)
    assert first.funnel.filter(step="users without attributes")["counted"].item() == 1


def test_index_holds_ids_sequences_and_titles(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    done = command(
        "export", "index", "--run", tiny_run.directory, "--out", tmp_path, "--name", "tiny"
    )
    assert done.code == 0
    run = Run(tiny_run.directory)
    index, inter, item = (
        json.loads((tmp_path / f"tiny.{kind}.json").read_text())
        for kind in ("index", "inter", "item")
    )
    assert len(index) == len(item) == len(run.semantic_ids)
    for number, tokens in index.items():
        assert (
            run.semantic_ids.item_of(parse_semantic_id("".join(tokens))) == item[number]["item_id"]
        )
    assert {int(user): items for user, items in inter.items()} == {
        user: run.data.split.full_sequence(user).tolist()
        for user in range(run.data.split.num_users)
    }


def test_breaks_in_titles_become_blanks(tiny_run: Any, tmp_path: Path) -> None:
    data = Run(tiny_run.directory).data
    frame = data.items.frame.with_columns(title=pl.lit('a\tb\n"c"'))
    paths = export_recbole(replace(data, items=ItemTable(frame)), tmp_path, "x")
    assert paths[1].read_text().splitlines()[1].split("\t")[1] == 'a b "c"'


def samples(path: Path) -> list[tuple[str, list[str], str]]:
    header, *lines = path.read_text().splitlines()
    assert header == "user_id:token\titem_id_list:token_seq\titem_id:token"
    return [
        (user, history.split(" "), target)
        for user, history, target in (line.split("\t") for line in lines)
    ]


@pytest.mark.parametrize(
    "setting", [{"cold_item_share": 0.2}, {"split": "temporal"}, {"split": "minionerec"}]
)
def test_other_splits_are_written_part_by_part(
    tiny_data: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    data = prepare(DataConfig.model_validate({"path": tiny_data} | setting))
    paths = export_recbole(data, tmp_path, "x")
    assert [path.name for path in paths] == [
        "x.train.inter",
        "x.valid.inter",
        "x.test.inter",
        "x.item",
    ]
    user_ids, item_ids = (
        data.interactions.user_ids.to_list(),
        data.interactions.item_ids.to_list(),
    )
    split = data.split
    for part in ("valid", "test"):
        sequences = split.target_users(part)
        assert samples(tmp_path / f"x.{part}.inter") == [
            (
                user_ids[owner],
                [item_ids[i] for i in split.history(int(sequence), part)][-50:],
                item_ids[target],
            )
            for sequence, owner, target in zip(
                sequences, split.owners_of(sequences), split.targets(part, sequences), strict=True
            )
        ]
    train = samples(tmp_path / "x.train.inter")
    learned = [split.train_sequence(user) for user in range(split.num_users)]
    assert len(train) == sum(max(0, len(own) - 1) for own in learned)
    longest = 10 if "minionerec" in setting.values() else 50
    assert max(len(history) for _, history, _ in train) <= longest
    held_out = set(range(split.num_items)) - {int(i) for own in learned for i in own}
    seen = {item for _, history, target in train for item in (*history, target)}
    assert not seen & {item_ids[i] for i in held_out}


def test_minionerec_gets_its_split_by_numbers(
    new_config: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    assert command("tokenize", new_config(data={"split": "minionerec"})).code == 0
    run, out = tmp_path / "runs" / "new", tmp_path / "out"
    done = command("export", "index", "--run", run, "--out", out, "--name", "x", "--json")
    assert len(done.json()["files"]) == 6
    index = json.loads((out / "x.index.json").read_text())
    for part in ("train", "valid", "test"):
        for user, history, target in samples(out / f"x.{part}.inter"):
            assert int(user) < 60
            assert {*history, target} <= set(index)


def prepare_log(folder: Path, user_ids: list[str], item_ids: list[str]) -> PreparedData:
    """Prepare interactions in the given order."""
    rows = {"user_id": user_ids, "item_id": item_ids, "timestamp": range(len(user_ids))}
    pl.DataFrame(rows).write_parquet(folder / "log.parquet")
    one = {"min_user_interactions": 1, "min_item_interactions": 1}
    return prepare(DataConfig(source="table", path=folder, **one))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("u v", r"1 user ids cannot be written.*hold blanks.*'u v'"),
        ('"u', "start with a quote"),
        ("null", "read as missing; the first is 'null'"),
    ],
)
def test_ids_that_recbole_cannot_read(tmp_path: Path, user: str, message: str) -> None:
    data = prepare_log(tmp_path, [user] * 4, list("abcd"))
    with pytest.raises(DataError, match=message):
        export_recbole(data, tmp_path / "out", "x")
    assert not (tmp_path / "out").exists()


def test_short_sequences_are_written_part_by_part(tmp_path: Path) -> None:
    # RecBole itself would train on the validation target of a user with three interactions.
    data = prepare_log(tmp_path, list("uuuuvvv"), list("abcdabc"))
    export_recbole(data, tmp_path / "out", "x")
    assert samples(tmp_path / "out" / "x.train.inter") == [("u", ["a"], "b")]
    assert samples(tmp_path / "out" / "x.valid.inter") == [
        ("u", ["a", "b"], "c"),
        ("v", ["a"], "b"),
    ]
    assert not (tmp_path / "out" / "x.inter").exists()


def test_titles_that_start_with_a_quote_can_be_read(tiny_run: Any, tmp_path: Path) -> None:
    data = Run(tiny_run.directory).data
    titles = ['"Great" Cats', '"open', 'in "it"', *["x"] * 37]
    items = ItemTable(data.items.frame.with_columns(title=pl.Series(titles)))
    export_recbole(replace(data, items=items), tmp_path, "x")
    # RecBole reads the file in this way.
    read = pd.read_csv(tmp_path / "x.item", delimiter="\t", dtype=str, engine="python")
    assert [title.split() for title in read["title:token_seq"]] == [t.split() for t in titles]


def test_formulas_stay_data(tiny_run: Any, tmp_path: Path) -> None:
    data = Run(tiny_run.directory).data
    title = "=cmd|' /C calc'!A0"
    items = ItemTable(data.items.frame.with_columns(title=pl.lit(title)))
    export_recbole(replace(data, items=items), tmp_path, "x")
    assert (tmp_path / "x.item").read_text().splitlines()[1].split("\t")[1] == title


def test_a_place_that_cannot_be_written(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = command("export", "index", "--run", tiny_run.directory, "--out", tmp_path / "file" / "x")
    assert "Choose another --out" in done.error_message()


def test_the_id_table_comes_in_every_form(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    table = Run(tiny_run.directory).semantic_ids
    for kind in ("table", "trie"):
        assert command("export", kind, "--run", tiny_run.directory, "--out", tmp_path).code == 0
    assert pl.read_parquet(tmp_path / "recgrit.parquet").equals(table.to_polars())
    lines = [json.loads(line) for line in (tmp_path / "recgrit.jsonl").read_text().splitlines()]
    assert [tuple(line["codes"]) for line in lines] == [table.codes_of(i) for i in table.item_ids]
    assert lines[0].keys() == {"item_id", "title", "codes", "semantic_id"}
    # A walk along an item's codes in the exported trie ends at the item.
    trie = load_file(tmp_path / "recgrit.trie.safetensors")
    for item, codes in enumerate(table.codes.tolist()):
        node = 0
        for code in codes:
            below = range(trie["child_starts"][node], trie["child_starts"][node + 1])
            (node,) = [child for child in below if trie["node_codes"][child] == code]
        assert trie["leaf_items"][trie["leaf_starts"][node]] == item


def test_a_bundle_is_exported_and_appended_to_and_recommends(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done = command("export", "bundle", "--run", tiny_run.directory, "--out", first, "--json")
    assert done.json()["files"] == [str(first)]
    items, gone, taken = tmp_path / "items.jsonl", tmp_path / "gone.txt", tmp_path / "taken.csv"
    items.write_text('{"item_id": "n1", "title": "Star Planet", "genres": ["Sci-Fi"]}\n')
    gone.write_text("3\nnobody\n")
    taken.write_text("user_id,item_id,timestamp\nme,7,1\nme,n1,2\n")
    done = command("append", first, items, "--out", second, "--remove", gone, "--json")
    assert "1 item added" in done.out
    assert "1 to remove are unknown; 40 listed" in done.out
    values = done.json()
    assert (values["num_added"], values["num_removed"], values["num_unknown"]) == (1, 1, 1)
    lists = tmp_path / "out" / "lists.parquet"
    asked = ("--histories", taken, "--out", lists, "--top-k", "5", "--json")
    done = command("recommend", "--bundle", second, *asked)
    assert done.json()["num_rows"] == 5
    assert set(pl.read_parquet(lists)["user_id"]) == {"me"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("append", "b"), "with --out FOLDER"),
        (("append", "b", "--out", "c"), "--remove FILE"),
        (("recommend", "--bundle", "b"), "No bundle at b"),
        (("append", "nowhere", "nothing.csv", "--out", "c"), "No bundle at nowhere"),
        (("export", "table", "--out", "c", "--name", "../x"), "without folders"),
        (("export", "table", "--out", "c", "--name", ".."), "without folders"),
        (
            ("recommend", "--bundle", "b", "--histories", "h.parquet", "--out", "./h.parquet"),
            "is the input file",
        ),
    ],
)
def test_missing_or_invalid_arguments_are_refused(
    command: Callable[..., Any], arguments: tuple[str, ...], told: str
) -> None:
    assert told in command(*arguments).error_message()


def test_files_that_belong_together_appear_together(
    copied_run: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader meets all old files or none of them while the new ones are written."""
    from recgrit import disk

    out = tmp_path / "out"
    out.mkdir()
    (out / "x.inter").write_text("old")
    (out / "notes.txt").write_text("mine")
    seen = []

    def watched(source: Path, destination: Path) -> None:
        seen.append({path.name: path.read_text() for path in out.iterdir()})
        replace_folder(source, destination)

    replace_folder = disk.replace_folder
    monkeypatch.setattr(disk, "replace_folder", watched)
    done = command("export", "recbole", "--run", copied_run, "--out", out, "--name", "x", "--json")
    assert seen == [{"x.inter": "old", "notes.txt": "mine"}]
    made = {path.name for path in out.iterdir()}
    assert made == {"notes.txt", *(Path(file).name for file in done.json()["files"])}
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "x.inter").read_text() != "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"], "nothing is left"


@pytest.mark.parametrize("kind", ["recbole", "index", "table"])
def test_a_folder_with_folders_or_the_working_folder_is_not_replaced(
    kind: str, copied_run: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = command("export", kind, "--run", copied_run, "--out", copied_run.parent).error_message()
    assert "holds copy" in told
    monkeypatch.chdir(copied_run.parent)
    assert (
        "the working folder"
        in command("export", kind, "--run", copied_run, "--out", ".").error_message()
    )


@pytest.mark.parametrize("kind", ["index", "bundle", "mlflow"])
def test_a_full_disk_at_the_lock_is_reported(
    kind: str, copied_run: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    out = copied_run.parent / "deep" / "out"
    told = command("export", kind, "--run", copied_run, "--out", out).error_message()
    assert "No space left" in told
    assert not out.exists()


def test_a_model_is_not_put_into_an_artifact(copied_run: Path, command: Callable[..., Any]) -> None:
    out = copied_run / "data" / "inner" / "model"
    told = command("export", "mlflow", "--run", copied_run, "--out", out).error_message()
    assert "an artifact that recgrit wrote" in told
    assert not out.parent.exists()
    assert command("inspect", "run", "--run", copied_run, "--verify").code == 0


def test_a_name_with_folders_is_refused(copied_run: Path, command: Callable[..., Any]) -> None:
    for name in ("../x", "a/b", "..", ".", ""):
        out = copied_run.parent / "out"
        told = command("export", "recbole", "--run", copied_run, "--out", out, "--name", name)
        assert "without folders" in told.error_message()
        assert not out.exists()
