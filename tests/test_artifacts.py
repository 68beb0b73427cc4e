import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recgrit import artifacts
from recgrit.artifacts import (
    check_parent,
    is_current,
    load_artifact,
    open_artifact,
    write_artifact,
)
from recgrit.checksums import digest_json
from recgrit.disk import MANIFEST_NAME, write_atomic
from recgrit.errors import ArtifactError
from recgrit.manifests import SCHEMA_VERSION, Manifest, Origin, read_manifest

CONFIG = {"num_levels": 3, "codebook_size": 256}


def origin(**changes) -> Origin:  # type: ignore[no-untyped-def]
    values = {"stage": "tokenize", "version": 1, "config": CONFIG, "parents": {"embed": "e1"}}
    return Origin(**values | changes)


def build(directory: Path, content: str = "codes", **changes) -> Manifest:  # type: ignore[no-untyped-def]
    with write_artifact(directory, origin(**changes)) as writer:
        (writer.path / "tables").mkdir()
        (writer.path / "tables" / "codes.txt").write_text(content)
        writer.summary["title"] = "Amélie"
    return read_manifest(directory)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "partial" in path.name]


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "first" / "tokenize"
    manifest = build(directory, inputs={"/data/items.csv": "d1"})
    assert (directory / "tables" / "codes.txt").read_text() == "codes"
    assert manifest.stage == "tokenize"
    assert manifest.config == CONFIG
    assert manifest.parents == {"embed": "e1"}
    assert manifest.inputs == {"/data/items.csv": "d1"}
    assert manifest.summary == {"title": "Amélie"}
    assert list(manifest.files) == ["tables/codes.txt"]
    record = manifest.files["tables/codes.txt"]
    assert (record.bytes, record.sample) == (5, "")
    assert record.sha256 == hashlib.sha256(b"codes").hexdigest()
    assert leftovers(directory.parent) == []


def test_a_rebuild_replaces_the_old_files(tmp_path: Path) -> None:
    build(tmp_path / "tokenize")
    (tmp_path / "tokenize" / ".DS_Store").write_text("of a file manager")
    build(tmp_path / "tokenize", content="new")
    assert (tmp_path / "tokenize" / "tables" / "codes.txt").read_text() == "new"
    assert not (tmp_path / "tokenize" / ".DS_Store").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["notes.txt", "tables/notes.txt", ".git/config"])
def test_files_that_recgrit_did_not_write_are_kept(tmp_path: Path, name: str) -> None:
    build(tmp_path / "tokenize")
    path = tmp_path / "tokenize" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ArtifactError, match=rf"holds {name}, which recgrit did not write"):
        build(tmp_path / "tokenize", content="new")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("link", [True, False])
def test_a_folder_of_something_else_is_kept(tmp_path: Path, link: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "u.data").write_text("raw")
    directory = tmp_path / "mine"
    if link:
        directory = tmp_path / "tokenize"
        directory.symlink_to(tmp_path / "mine")
    with pytest.raises(ArtifactError, match="is not recgrit's tokenize"):
        build(directory)
    assert (tmp_path / "mine" / "u.data").read_text() == "raw"


def test_nothing_is_written_into_an_artifact(tmp_path: Path) -> None:
    manifest = build(tmp_path / "tokenize")
    with pytest.raises(ArtifactError, match=r"is inside .*tokenize, an artifact"):
        build(tmp_path / "tokenize" / "inner" / "embed")
    with pytest.raises(ArtifactError, match=r"is inside .*tokenize, an artifact"):
        write_atomic(tmp_path / "tokenize" / "report.html", "page")
    assert open_artifact(tmp_path / "tokenize") == manifest
    (tmp_path / MANIFEST_NAME).write_text('{"name": "a page that can be installed"}')
    build(tmp_path / "embed", stage="embed")


def test_other_folders_of_like_names_are_left_alone(tmp_path: Path) -> None:
    for name in (".c1.partial", ".c.partial-mine", ".c[1].partial"):
        (tmp_path / name).mkdir()
    build(tmp_path / "c[1]")
    build(tmp_path / "c")
    assert sorted(leftovers(tmp_path)) == [".c.partial-mine", ".c1.partial"]


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "tokenize").mkdir()
    os.mkfifo(tmp_path / "tokenize" / MANIFEST_NAME)
    with pytest.raises(ArtifactError, match="No artifact at"):
        read_manifest(tmp_path / "tokenize")


def test_the_root_is_no_artifact() -> None:
    with pytest.raises(ArtifactError, match="/ is not a writable folder"):
        build(Path("/"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [True, False])
def test_a_stage_that_fails_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], existed: bool
) -> None:
    directory = tmp_path / "tokenize"
    before = build(directory) if existed else None

    def fail() -> None:
        with write_artifact(directory, origin()) as writer:
            (writer.path / "half.txt").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    if existed:
        assert read_manifest(directory) == before
    else:
        assert not directory.exists()
    assert leftovers(tmp_path) == []


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    for name in (".tokenize.partial", ".embed.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.txt").write_text("half")
    build(tmp_path / "tokenize")
    assert leftovers(tmp_path) == [".embed.partial"], "another stage's folder is not ours to remove"


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for elsewhere in ("--out", "run.dir=PATH"):
        with (
            pytest.raises(ArtifactError, match=rf"Cannot write to .* folder with {elsewhere}\."),
            write_artifact(tmp_path / "file" / "bundle", origin(), elsewhere=elsewhere),
        ):
            pytest.fail("nothing may begin")


def test_numbers_from_arrays_are_fit_for_a_summary(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "fit", origin()) as writer:
        writer.summary |= {"usage": np.float32(0.5), "dead_codes": np.int64(3), "loss": np.nan}
    summary = read_manifest(tmp_path / "fit").summary
    assert (summary["usage"], summary["dead_codes"]) == (0.5, 3)


def test_same_settings_same_key(tmp_path: Path) -> None:
    first, again = build(tmp_path / "a"), build(tmp_path / "b")
    assert (first.key, first.fingerprint) == (again.key, again.fingerprint)


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "embed"},
        {"version": 2},
        {"config": CONFIG | {"num_levels": 4}},
        {"parents": {"embed": "e2"}},
        {"inputs": {"items.csv": "d1"}},
    ],
)
def test_the_key_follows_what_a_stage_starts_from(changes: dict) -> None:  # type: ignore[type-arg]
    assert origin(**changes).key != origin().key


def test_the_key_depends_on_the_content_and_order_of_inputs() -> None:
    def key(inputs: dict[str, str]) -> str:
        return Origin("prepare", 1, {}, inputs=inputs).key

    here = key({"/home/a/ratings.dat": "d1", "/home/a/movies.dat": "d2"})
    assert key({"/mnt/b/log.csv": "d1", "films.csv": "d2"}) == here, "wherever they lie"
    assert key({"/home/a/ratings.dat": "d2", "/home/a/movies.dat": "d1"}) != here
    assert key({"/home/a/ratings.dat": "CHANGED", "/home/a/movies.dat": "d2"}) != here


def test_the_order_of_settings_does_not_matter() -> None:
    assert digest_json({"a": 1, "b": (2, 3)}) == digest_json({"b": [2, 3], "a": 1})


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first, other = build(tmp_path / "a"), build(tmp_path / "b", content="other codes")
    assert first.key == other.key
    assert first.fingerprint != other.fingerprint


def test_is_current(tmp_path: Path) -> None:
    assert not is_current(tmp_path / "tokenize", "k")
    manifest = build(tmp_path / "tokenize")
    assert is_current(tmp_path / "tokenize", manifest.key)
    assert not is_current(tmp_path / "tokenize", "another key")


def rewrite(directory: Path, **changes: object) -> None:
    values = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    (directory / MANIFEST_NAME).write_text(json.dumps(values | changes), encoding="utf-8")


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, "2.0", None])
def test_a_newer_schema_is_refused(tmp_path: Path, version: object) -> None:
    manifest = build(tmp_path / "tokenize")
    # A newer manifest may have fields that this release does not know.
    rewrite(tmp_path / "tokenize", schema_version=version, checksum="x")
    for read in (read_manifest, lambda directory: is_current(directory, manifest.key)):
        with pytest.raises(ArtifactError, match=rf"schema version {version}, .*Upgrade recgrit"):
            read(tmp_path / "tokenize")


def test_an_older_schema_is_refused_and_not_current(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "tokenize"
    manifest = build(directory)
    # The first schema had no version of the stage.
    values = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    del values["version"]
    (directory / MANIFEST_NAME).write_text(json.dumps(values | {"schema_version": 1}))
    with pytest.raises(ArtifactError) as caught:
        read_manifest(directory)
    assert "written by an older recgrit, with schema version 1" in str(caught.value)
    assert f"recgrit run {directory.parent}" in str(caught.value)
    assert not is_current(directory, manifest.key)


def test_missing_and_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No artifact at .*recgrit run"):
        read_manifest(tmp_path / "nothing")
    directory = tmp_path / "tokenize"
    build(directory)
    rewrite(directory, files="none")
    with pytest.raises(ArtifactError, match="1 fields cannot be read"):
        read_manifest(directory)
    for text in ("{", "[]", "{}", ""):
        (directory / MANIFEST_NAME).write_text(text)
        with pytest.raises(ArtifactError, match=r"is damaged.*Delete"):
            read_manifest(directory)
    shutil.rmtree(directory)
    build(directory)
    (directory / "tables" / "codes.txt").unlink()
    with pytest.raises(ArtifactError, match=r"lacks tables/codes\.txt"):
        read_manifest(directory)


def test_a_child_of_another_parent_is_refused(tmp_path: Path) -> None:
    parent_at, child_at = tmp_path / "tokenize", tmp_path / "train"
    parent = build(parent_at)
    child = build(child_at, stage="train", parents={"tokenize": parent.fingerprint})
    check_parent(child_at, child, parent_at, parent)

    rebuilt = build(parent_at, content="other codes")
    with pytest.raises(ArtifactError) as caught:
        check_parent(child_at, child, parent_at, rebuilt)
    for part in (parent.fingerprint, rebuilt.fingerprint, str(child_at), "recgrit run"):
        assert part in str(caught.value)

    stranger = build(tmp_path / "embed", stage="embed", parents={})
    with pytest.raises(
        ArtifactError, match="was built from the embed artifact with fingerprint None"
    ):
        check_parent(child_at, child, tmp_path / "embed", stranger)


def test_the_manifest_is_utf8_under_any_locale(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from recgrit.artifacts import *\n"
        "start = Origin('prepare', 1, {})\n"
        f"with write_artifact(Path({str(tmp_path)!r}) / 'fit', start) as w:\n"
        "    w.summary['title'] = 'Am\\u00e9lie'\n"
        f"print(ascii(read_manifest(Path({str(tmp_path)!r}) / 'fit').summary['title']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == r"'Am\xe9lie'", done.stderr


def test_a_partial_folder_is_invisible_to_readers(tmp_path: Path) -> None:
    directory = tmp_path / "tokenize"
    with write_artifact(directory, origin()) as writer:
        assert writer.path.parent == tmp_path
        assert writer.path.name.startswith(".")
        assert not directory.exists()
    assert artifacts.read_manifest(directory).files == {}


def test_a_file_truncated_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Polars then panics, which is no subclass of ``Exception``. Interrupts are not caught."""
    build(tmp_path / "tokenize")

    def panic(_: Path) -> None:
        raise pl.exceptions.PanicException("range end out of bounds")

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ArtifactError, match="cannot be read"):
        load_artifact(tmp_path / "tokenize", panic)
    with pytest.raises(KeyboardInterrupt):
        load_artifact(tmp_path / "tokenize", stop)
