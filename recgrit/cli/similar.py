"""The `similar` command, which finds items that are similar to an item."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from recgrit.cli.app import JsonOption, app, print_json
from recgrit.display import build_table, output
from recgrit.errors import ArtifactError, ConfigError
from recgrit.progress import messages

if TYPE_CHECKING:
    from recgrit.runs import Run
    from recgrit.serving.bundle import Bundle


@app.command(rich_help_panel="Use")
def similar(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [ITEM]",
            help="Run folder (not with --bundle), and the id of an item (not with --all).",
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Bundle to use instead of a run.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="Kind of similarity: embedding, neighbours, semantic_id or retriever.",
        ),
    ] = "embedding",
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", min=1, help="Number of similar items.")
    ] = 10,
    every: Annotated[
        bool, typer.Option("--all", metavar="", help="List similar items of all items.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Parquet file to write, required with --all."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the items most similar to one item, or write those of all items as one table.

    Example: `recgrit similar runs/movielens-100k 50 --by neighbours`

    For all items: `recgrit similar runs/movielens-100k --all --out similar.parquet`
    """
    given = list(words or [])
    if len(given) != (bundle is None) + (not every):
        raise ConfigError(
            "Name a run and an item ('recgrit similar RUN ITEM'), or --bundle BUNDLE in place of "
            f"the run, or --all in place of the item; got {len(given)} "
            f"name{'' if len(given) == 1 else 's'}."
        )
    if every != (out is not None):
        raise ConfigError("--all needs --out FILE, and --out FILE needs --all.")
    source = _open(Path(given[0])) if bundle is None else _open_bundle(bundle)
    found = source.similar(by)  # type: ignore[arg-type]  # It refuses other names.
    if out is not None:
        from recgrit.data.recommendations import write_lists
        from recgrit.disk import explain_write_failure

        if out.is_dir() or out.suffix not in ("", ".parquet"):
            raise ArtifactError(
                "Lists are written as a Parquet file: expected a file name that ends in "
                f".parquet, got {out}."
            )
        try:
            written = write_lists(found.list_all(top_k=top_k), out, of="item_id")
        except OSError as error:
            reason = explain_write_failure(error) or error
            raise ArtifactError(f"Cannot write {out}: {reason}.") from None
        messages.print(f"{written.num_rows:,} rows written to {escape(str(out))}", soft_wrap=True)
        if as_json:
            print_json({"by": by, "num_rows": written.num_rows, "out": str(out)})
        return
    rows = found.of(given[-1], top_k=top_k)
    table = build_table("rank", "item", "title", "score", numbers=("rank", "score"))
    for row in rows.iter_rows(named=True):
        score = f"{row['score']:.4f}"
        table.add_row(str(row["rank"]), escape(row["item_id"]), escape(row["title"]), score)
    output.print(table)
    if as_json:
        print_json({"item_id": given[-1], "by": by, "similar": rows.to_dicts()})


def _open(directory: Path) -> Run:
    from recgrit.runs import Run

    return Run(directory)


def _open_bundle(directory: Path) -> Bundle:
    from recgrit.serving.bundle import Bundle

    return Bundle(directory)
