"""Commands that use what a run made, hand it on, and take back what others made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.display import metrics_table, output, print_history, recommendation_table
from recgrit.errors import ArtifactError, ConfigError, DataError, RecgritError
from recgrit.progress import messages

if TYPE_CHECKING:
    import polars as pl

    from recgrit.data.config import TableConfig
    from recgrit.recommender import Recommender
    from recgrit.runs import Run

Kind = Literal["recbole", "index", "table", "trie", "bundle", "mlflow"]


@app.command(rich_help_panel="Use")
def recommend(
    run_directory: RunOption = None,
    user: Annotated[
        list[str] | None,
        typer.Option("--user", "-u", metavar="ID", help="User id; repeat for several."),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", min=1, help="Items per user.")
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write Parquet here; all users if no --user."
        ),
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", metavar="", help="Allow items the user already has.")
    ] = False,
    allow: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file of the only items to list, one id a line."),
    ] = None,
    block: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file of items never to list, one id a line."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="A bundle in place of a run, with --histories."),
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Parquet, CSV or JSON lines with user_id, item_id and timestamp."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend items, with titles and scores.

    Example: `recgrit recommend --run runs/movielens-100k --user 196 --top-k 5`

    For all users: `recgrit recommend --run runs/movielens-100k --out lists.parquet`
    """
    if bundle is not None or histories is not None:
        if bundle is None or histories is None or out is None:
            raise ConfigError("--bundle DIR, --histories FILE and --out FILE belong together.")
        if out.resolve() in (histories.resolve(), bundle.resolve()):
            raise ConfigError(f"{out} is what is read: name another file with --out.")
        from recgrit.artifacts import retry_replaced
        from recgrit.serving.bundle import Bundle
        from recgrit.serving.files import read_histories

        source = bundle

        def open_bundle() -> tuple[Recommender, TableConfig]:
            opened_bundle = Bundle(source)
            return opened_bundle.recommender(), opened_bundle.settings.table

        recommender, table = retry_replaced(open_bundle)
        read = read_histories(histories, recommender.items, table)
        lists = recommender.list_users(
            read.split, read.user_ids, top_k=top_k, exclude_seen=not include_seen
        )
        num_rows = _write_lists(out, lists)
        if as_json:
            print_json({"bundle": str(bundle), "num_rows": num_rows, "out": str(out)})
        return
    if not user and out is None:
        raise ConfigError("Name users with --user ID, or a file for all users with --out FILE.")
    if out is not None and out.is_dir():
        raise ArtifactError(f"{out} is a folder: name a file, such as {out / 'lists.parquet'}.")
    from recgrit.data.items import read_item_list

    opened = open_run(run_directory)
    # A user named twice is meant once.
    users = list(dict.fromkeys(user)) if user else None
    shards = opened.iterate_recommendations(
        users,
        top_k=top_k,
        exclude_seen=not include_seen,
        allowed_items=read_item_list(allow) if allow else None,
        blocked_items=read_item_list(block) if block else (),
    )
    values: dict[str, Any] = {"run": str(opened.directory)}
    if out is not None:
        values |= {"num_rows": _write_lists(out, shards), "out": str(out)}
    else:
        import polars as pl

        found = pl.concat(shards)
        values |= {"num_rows": found.height, "recommendations": found.to_dicts()}
        for user_id in users or []:
            rows = found.filter(found["user_id"] == user_id)
            output.print(recommendation_table(user_id, rows))
            print_history(opened.history(user_id))
            if rows.height < top_k:
                messages.print(
                    f"User {escape(user_id)} can be recommended {rows.height} items only."
                )
    if as_json:
        print_json(values)


@app.command(rich_help_panel="Use")
def export(
    kind: Annotated[
        Kind,
        typer.Argument(
            metavar="KIND",
            help="recbole: atomic files. index: IDs, sequences and titles as JSON. table: the "
            "item-ID table as Parquet and JSON lines. trie: its tables as safetensors. bundle: a "
            "folder with all it takes to recommend. mlflow: that as a model for `mlflow models "
            "serve`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write to.")],
    run_directory: RunOption = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What the files are called.")
    ] = "recgrit",
    as_json: JsonOption = False,
) -> None:
    """Write a run's data, IDs or model for other tools and services.

    Example: `recgrit export bundle --run runs/movielens-100k --out bundles/monday`
    """
    from recgrit.disk import explain_write_failure

    if not name.strip(".") or any(character in name for character in "/\\\0"):
        raise ConfigError(f"--name is what files are called, without folders; got {name!r}.")
    opened = open_run(run_directory)
    try:
        paths = _export(opened, kind, out, name)
    except RecgritError:
        raise
    except Exception as error:  # Every format has its own for a full disk.
        reason = explain_write_failure(error) or getattr(error, "strerror", None)
        if reason is None:
            raise
        raise ConfigError(f"Cannot write to {out}: {reason}. Choose another --out.") from None
    for path in paths:
        output.print(str(path), soft_wrap=True, highlight=False)
    if as_json:
        print_json({"run": str(opened.directory), "files": [str(path) for path in paths]})


def _export(run: Run, kind: Kind, out: Path, name: str) -> list[Path]:
    from recgrit import export as files

    if kind == "recbole":
        return files.export_recbole(run.data, out, name)
    if kind == "index":
        return files.export_index(run.data, run.semantic_ids, out, name)
    if kind == "table":
        return files.export_table(run.semantic_ids, out, name)
    if kind == "trie":
        return files.export_trie(run.semantic_ids, out, name)
    from recgrit.serving.writing import export_bundle

    if kind == "bundle":
        export_bundle(run, out)
    else:
        import tempfile

        from recgrit.tracking.start import quieten_mlflow

        quieten_mlflow()
        from recgrit.serving.pyfunc import save_pyfunc

        if out.exists():
            raise ArtifactError(f"{out} is there already: name a folder that does not exist yet.")
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, so that it comes into its place as a whole.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            made = Path(folder) / "model"
            save_pyfunc(export_bundle(run, Path(folder) / "bundle"), made)
            made.rename(out)
    return [out]


@app.command(rich_help_panel="Use")
def append(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to start from.")],
    items: Annotated[
        Path | None,
        typer.Argument(metavar="ITEMS_FILE", help="Parquet, CSV or JSON lines with item_id."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder of the new bundle.")
    ] = None,
    remove: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file of items to remove, one id a line."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Vectors of the items, where the run took your own."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give IDs to new items and remove others; no ID that was given moves.

    Example: `recgrit append bundles/monday items.parquet --out bundles/tuesday --remove gone.txt`
    """
    if out is None:
        raise ConfigError("Name a folder for the new bundle with --out FOLDER.")
    if items is None and remove is None:
        raise ConfigError("Name a file of new items, or of items to remove with --remove FILE.")
    from recgrit.data.items import read_item_list
    from recgrit.embedding.vectors import load_vectors
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
        removed=read_item_list(remove) if remove is not None else (),
    )
    output.print(made.describe(), soft_wrap=True)
    output.print(str(out), soft_wrap=True, highlight=False)
    if as_json:
        counts = {name: n for name, n in vars(made).items() if name.startswith("num_")}
        print_json({"bundle": str(out), "fingerprint": made.bundle.fingerprint, **counts})


@app.command(rich_help_panel="Use")
def score(
    lists: Annotated[
        Path,
        typer.Argument(
            metavar="LISTS", help="Parquet, CSV or TSV with user_id, item_id and rank or score."
        ),
    ],
    run_directory: RunOption = None,
    split: Annotated[Literal["valid", "test"], typer.Option(help="Which targets.")] = "test",
    masked: Annotated[
        bool,
        typer.Option("--masked", metavar="", help="The lists leave out what the histories hold."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Keep the report in this folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate lists that another tool made, on the targets of a run and by its protocol.

    Example: `recgrit score recbole-top20.csv --run runs/movielens-100k`
    """
    from recgrit.artifacts import write_artifact
    from recgrit.checksums import digest_file
    from recgrit.evaluation.foreign_lists import read_lists
    from recgrit.evaluation.report import describe_ties, evaluate_recommendations
    from recgrit.manifests import Origin

    opened = open_run(run_directory)
    data, settings = opened.data, opened.config.evaluation
    ids = data.interactions
    found = read_lists(lists, data.split, split, ids.user_ids, ids.item_ids)
    ks = [k for k in settings.ks if k <= found.top_k]
    if not ks:
        raise DataError(
            f"{lists} has lists of {found.top_k} items at most, and the shortest that is evaluated "
            f"is {min(settings.ks)}. Bring longer lists."
        )
    report = evaluate_recommendations(
        found,
        data.split,
        split,
        masked=masked,
        search=f"lists from {lists.name}",
        ties=describe_ties(opened.config.data),
        seed=opened.config.seed,
        ks=ks,
        num_bootstrap=settings.num_bootstrap,
    )
    num_targets = report.protocol["num_targets"]
    output.print(f"{found.num_users:,} lists for {num_targets:,} {split} targets")
    output.print(metrics_table({lists.stem: report}))
    if out is not None:
        parents = {"prepare": opened.manifest("prepare").fingerprint}
        inputs = {str(lists): digest_file(lists)}
        origin = Origin("score", 1, {"split": split, "masked": masked}, parents, inputs)
        with write_artifact(out, origin, elsewhere="--out") as writer:
            report.save(writer.path)
    if as_json:
        bounds = {name: list(bound) for name, bound in report.intervals().items()}
        print_json(
            {
                "run": str(opened.directory),
                "split": split,
                "metrics": report.metrics(),
                "intervals": bounds,
                "num_lists": found.num_users,
                "num_targets": num_targets,
            }
        )


def _write_lists(path: Path, shards: Iterator[pl.DataFrame]) -> int:
    """Write lists as they come and say how many rows they were.

    Raises:
        ArtifactError: Nothing can be written there.
    """
    from recgrit.data.recommendations import write_lists
    from recgrit.disk import explain_write_failure

    if path.suffix not in ("", ".parquet"):
        raise ConfigError(f"Lists are written as Parquet: name {path.with_suffix('.parquet')}.")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        num_rows = write_lists(shards, path).num_rows
    except OSError as error:
        reason = explain_write_failure(error) or error
        raise ArtifactError(f"Cannot write {path}: {reason}.") from None
    messages.print(f"{num_rows:,} rows written to {escape(str(path))}", soft_wrap=True)
    return num_rows
