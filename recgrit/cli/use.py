"""Commands that use a run or a bundle: recommend, export, and append of new items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.cli.lists import SHOWN_USERS, Lists, ListsAfter, ListsOfFile, ListsOfRun, print_lists
from recgrit.display import output
from recgrit.errors import ArtifactError, ConfigError, RecgritError
from recgrit.progress import messages

if TYPE_CHECKING:
    import polars as pl

    from recgrit.data.config import TableConfig
    from recgrit.data.user_histories import UserHistories
    from recgrit.recommender import Recommender
    from recgrit.runs import Run
    from recgrit.serving.bundle import Bundle

# Kinds of export that a bundle is enough for. The other kinds need the data of a run.
FROM_BUNDLES = ("mlflow", "table", "trie")
Kind = Literal["recbole", "index", "table", "trie", "bundle", "mlflow"]


@app.command(rich_help_panel="Use")
def recommend(
    run_directory: RunOption = None,
    user: Annotated[
        list[str] | None,
        typer.Option(
            "--user", "-u", metavar="ID", help="User id. Repeat the option for several users."
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", min=1, help="Number of items per user.")
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Parquet file to write the lists to. Without --user it has all users.",
        ),
    ] = None,
    include_seen: Annotated[
        bool,
        typer.Option(
            "--include-seen", metavar="", help="Also list items that are in the user's history."
        ),
    ] = False,
    allow: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text file with the only items that may be listed, one id a line."
        ),
    ] = None,
    block: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text file with items that are never listed, one id a line."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Bundle to use instead of a run, with --histories, --after or its own users.",
        ),
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Histories for --bundle: a Parquet, CSV or JSON lines file with user_id, item_id "
            "and timestamp.",
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ITEM",
            help="Item of a history to recommend after, instead of a user. Repeat the option for "
            "several items, oldest first.",
        ),
    ] = None,
    fallback: Annotated[
        Literal["popular"] | None,
        typer.Option(
            metavar="popular",
            help="List popular items for users who are not in the log, or whose history has no "
            "known item. The column source marks these lists.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend items, with titles and scores.

    Example: `recgrit recommend --run runs/movielens-100k --user 196 --top-k 5`

    For all users: `recgrit recommend --run runs/movielens-100k --out lists.parquet`

    From a bundle: `recgrit recommend --bundle bundles/monday --after 242 --after 51`
    """
    from recgrit.data.items import read_item_list
    from recgrit.disk import resolve_links

    if out is not None and out.is_dir():
        raise ArtifactError(f"{out} is a folder: name a file, such as {out / 'lists.parquet'}.")
    if out and histories and resolve_links(out) == resolve_links(histories):
        raise ConfigError(f"{out} is the input file: name another file with --out.")
    # A user that is named twice gets one list.
    users = list(dict.fromkeys(user)) if user else None
    options: dict[str, Any] = {
        "top_k": top_k,
        "exclude_seen": not include_seen,
        "allowed_items": read_item_list(allow) if allow else None,
        "blocked_items": read_item_list(block) if block else (),
        "fallback": fallback,
    }
    if after and (users or histories is not None):
        raise ConfigError("--after ITEM is a history by itself: leave --user and --histories out.")
    lists: Lists
    if bundle is not None:
        values: dict[str, Any] = {"bundle": str(bundle)}
        lists = _lists_of_bundle(bundle, histories, after or [], users, options)
    elif histories is not None:
        raise ConfigError(
            "--histories FILE works only with --bundle BUNDLE; a run has its own histories."
        )
    else:
        opened = open_run(run_directory)
        values = {"run": str(opened.directory)}
        if not (users or after or out):
            raise ConfigError(
                "Name users with --user ID, the items of a history with --after ITEM, or a file "
                "for all users with --out FILE."
            )
        lists = ListsOfRun(opened, users, options)
        if after:
            lists = ListsAfter(opened.recommender(), after, options)
    if out is not None:
        values |= {"num_rows": _write_lists(out, lists.tables()), "out": str(out)}
    else:
        found = lists.first(SHOWN_USERS)
        values |= {"num_rows": found.height, "recommendations": found.to_dicts()}
        print_lists(found, lists, top_k=top_k)
    if as_json:
        print_json(values)


def _lists_of_bundle(
    bundle: Path,
    histories: Path | None,
    after: list[str],
    users: list[str] | None,
    options: dict[str, Any],
) -> Lists:
    from recgrit.artifacts import retry_replaced
    from recgrit.serving.bundle import Bundle
    from recgrit.serving.files import read_histories

    def open_bundle() -> tuple[Recommender, TableConfig, UserHistories]:
        opened = Bundle(bundle)
        return opened.recommender(), opened.settings.table, opened.users

    recommender, table, known = retry_replaced(open_bundle)
    if histories is not None:
        read = read_histories(histories, recommender.items, table)
        return ListsOfFile(recommender, read, users, options)
    if after or (not len(known.user_ids) and not users and options["fallback"] is not None):
        return ListsAfter(recommender, after, options)
    if not len(known.user_ids):
        raise ConfigError(
            "This bundle holds a model and no users. Name the items of a history with --after "
            "ITEM, or a file of user_id, item_id and timestamp with --histories FILE; or ask for "
            "popular items with --fallback popular; or export the bundle with --users."
        )
    return ListsOfFile(recommender, known, users, options)


@app.command(rich_help_panel="Use")
def export(
    kind: Annotated[
        Kind,
        typer.Argument(
            metavar="KIND",
            help="recbole: RecBole's atomic files. index: IDs, sequences and titles as JSON. "
            "table: the item-ID table as Parquet and JSON lines. trie: the tables of the ID trie "
            "as safetensors. bundle: a folder with all that is needed to recommend. mlflow: a "
            "bundle as a model for `mlflow models serve`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")],
    run_directory: RunOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Bundle to use instead of a run, for mlflow, table and trie."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the files to write.")
    ] = "recgrit",
    users: Annotated[
        bool,
        typer.Option(
            "--users", metavar="", help="Keep the users' histories in the bundle or MLflow model."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's data, IDs or model for other tools and services.

    Example: `recgrit export bundle --run runs/movielens-100k --out bundles/monday`

    From a bundle: `recgrit export mlflow --bundle bundles/monday --out models/monday`
    """
    from recgrit.disk import explain_write_failure

    if not name.strip(".") or any(character in name for character in "/\\\0"):
        raise ConfigError(f"--name is a file name without folders, got {name!r}.")
    if bundle is not None and run_directory is not None:
        raise ConfigError("--run RUN and --bundle BUNDLE are two sources: name only one of them.")
    if bundle is not None and kind not in FROM_BUNDLES:
        raise ConfigError(
            f"A bundle can be exported as {', '.join(FROM_BUNDLES)}; {kind} needs a run, named "
            "with --run RUN."
        )
    if users and (bundle is not None or kind not in ("bundle", "mlflow")):
        raise ConfigError("--users works only with a bundle or an mlflow model of a run.")
    opened: Run | Bundle
    if bundle is None:
        opened = open_run(run_directory)
    else:
        from recgrit.serving.bundle import Bundle

        opened = Bundle(bundle)
    try:
        paths = _export(opened, kind, out, name, with_users=users)
    except RecgritError:
        raise
    except Exception as error:  # Each format raises another error if the disk is full.
        reason = explain_write_failure(error) or getattr(error, "strerror", None)
        if reason is None:
            raise
        raise ConfigError(f"Cannot write to {out}: {reason}. Choose another --out.") from None
    for path in paths:
        output.print(escape(str(path)), soft_wrap=True)
    if as_json:
        source = "run" if bundle is None else "bundle"
        print_json({source: str(opened.directory), "files": [str(path) for path in paths]})


def _export(
    source: Run | Bundle, kind: Kind, out: Path, name: str, *, with_users: bool
) -> list[Path]:
    from recgrit import export as files
    from recgrit.runs import Run

    if kind == "table":
        return files.export_table(source.semantic_ids, out, name)
    if kind == "trie":
        return files.export_trie(source.semantic_ids, out, name)
    if isinstance(source, Run):
        if kind == "recbole":
            return files.export_recbole(source.data, out, name)
        if kind == "index":
            return files.export_index(source.data, source.semantic_ids, out, name)
        from recgrit.serving.writing import export_bundle

        if kind == "bundle":
            export_bundle(source, out, with_users=with_users)
            return [out]
    _export_mlflow(source, out, with_users=with_users)
    return [out]


def _export_mlflow(source: Run | Bundle, out: Path, *, with_users: bool) -> None:
    """Write an MLflow model from a bundle, or from a run of which a bundle is exported first."""
    import tempfile

    from recgrit.tracking.start import quieten_mlflow

    quieten_mlflow()
    from recgrit.runs import Run
    from recgrit.serving.pyfunc import save_pyfunc
    from recgrit.serving.writing import export_bundle

    with tempfile.TemporaryDirectory() as apart:
        bundle = source
        if isinstance(bundle, Run):
            bundle = export_bundle(bundle, Path(apart) / "bundle", with_users=with_users)
        save_pyfunc(bundle, out)


@app.command(rich_help_panel="Use")
def append(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle to start from. It is not changed.")
    ],
    items: Annotated[
        Path | None,
        typer.Argument(
            metavar="ITEMS_FILE",
            help="New items: a Parquet, CSV or JSON lines file with the column names of the run's "
            "item table, or with item_id and title.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the new bundle.")
    ] = None,
    remove: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file with items to remove, one id a line."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Vectors of the new items, required if the run used vectors of your own.",
        ),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Vectors of the new items for a feature block. Repeat the option for several "
            "blocks.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that relative paths of pictures start from. If not given: the folder of "
            "ITEMS_FILE.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a new bundle with items added or removed; every existing ID stays the same.

    Example: `recgrit append bundles/monday items.parquet --out bundles/tuesday --remove gone.txt`
    """
    if out is None:
        raise ConfigError("Name a folder for the new bundle with --out FOLDER.")
    if items is None and remove is None:
        raise ConfigError("Name a file of new items, or of items to remove with --remove FILE.")
    from recgrit.data.items import read_item_list
    from recgrit.embedding.vectors import load_some_vectors, load_vectors
    from recgrit.serving.append import append_items
    from recgrit.serving.bundle import Bundle
    from recgrit.serving.files import read_items

    before = Bundle(bundle)
    offered = read_items(items, before.settings.table) if items is not None else None
    made = append_items(
        before,
        out,
        offered,
        vectors=load_vectors(vectors, offered.item_ids) if vectors and offered else None,
        blocks={
            name: load_some_vectors(path, offered.item_ids)
            for name, path in _read_pairs(block or []).items()
        }
        if offered
        else None,
        pictures=pictures or (items if items is None or items.is_dir() else items.parent),
        removed=read_item_list(remove) if remove is not None else (),
    )
    output.print(escape(made.describe()), soft_wrap=True)
    output.print(escape(made.delta.describe()), soft_wrap=True)
    output.print(escape(str(out)), soft_wrap=True)
    if as_json:
        counts = {name: n for name, n in vars(made).items() if name.startswith("num_")}
        print_json({"bundle": str(out), "fingerprint": made.bundle.fingerprint, **counts})


def _read_pairs(texts: list[str]) -> dict[str, Path]:
    """Return the file of each block name from texts such as ``NAME=FILE``."""
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"Cannot read --block {text!r:.80}: expected NAME=FILE.")
        if name in found:
            raise ConfigError(f"--block names {name!r:.80} twice: give its vectors in one file.")
        found[name] = Path(path)
    return found


def _write_lists(path: Path, shards: Iterator[pl.DataFrame]) -> int:
    """Write tables of lists one after another to a Parquet file, and return the number of rows.

    Raises:
        ArtifactError: The file cannot be written.
    """
    from recgrit.data.recommendations import write_lists
    from recgrit.disk import explain_write_failure

    if path.suffix not in ("", ".parquet"):
        raise ConfigError(f"Lists are written as Parquet: name {path.with_suffix('.parquet')}.")

    try:
        num_rows = write_lists(shards, path).num_rows
    except OSError as error:
        reason = explain_write_failure(error) or error
        raise ArtifactError(f"Cannot write {path}: {reason}.") from None
    messages.print(f"{num_rows:,} rows written to {escape(str(path))}", soft_wrap=True)
    return num_rows
