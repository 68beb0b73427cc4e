"""Commands that look at a run and at what can be run: recommend, inspect, datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.display import (
    build_table,
    funnel_table,
    output,
    print_history,
    print_metrics,
    print_retriever,
    print_tokenizer,
    recommendation_table,
    relatives_table,
)
from recgrit.errors import ArtifactError, ConfigError
from recgrit.progress import messages

if TYPE_CHECKING:
    import polars as pl

inspect_app = typer.Typer(help="Look at what a run made.", no_args_is_help=True)
app.add_typer(inspect_app, name="inspect", rich_help_panel="Look")


@app.command(rich_help_panel="Look")
def recommend(
    run_directory: RunOption = None,
    user: Annotated[
        list[str] | None, typer.Option("--user", "-u", help="User id; repeat for several.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Items per user.")] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write Parquet here; all users if no --user.")
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Allow items the user already has.")
    ] = False,
    allow: Annotated[
        Path | None, typer.Option(help="Text file of the only items to list, one id a line.")
    ] = None,
    block: Annotated[
        Path | None, typer.Option(help="Text file of items never to list, one id a line.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle in place of a run, with --histories.")
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(help="Parquet, CSV or JSON lines with user_id, item_id and timestamp."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend items, with titles and scores.

    Example: `recgrit recommend --run runs/movielens-100k --user 42`
    """
    if bundle is not None or histories is not None:
        if bundle is None or histories is None or out is None:
            raise ConfigError("--bundle DIR, --histories FILE and --out FILE belong together.")
        from recgrit.serving.bundle import Bundle
        from recgrit.serving.files import read_histories

        model = Bundle(bundle)
        read = read_histories(histories, model.semantic_ids)
        lists = model.iterate_recommendations(read.split, read.user_ids, top_k=top_k)
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


@app.command(rich_help_panel="Look")
def datasets(
    family: Annotated[
        str | None, typer.Argument(help="Name its categories: amazon2014, amazon2018, amazon2023.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the published data sets that can be read, their terms, and what that was verified on."""
    from recgrit.data.categories import AMAZON_CATEGORIES
    from recgrit.data.releases import RELEASES

    if family is not None:
        if family not in AMAZON_CATEGORIES:
            raise ConfigError(
                f"No family of data sets {family!r}. There are {', '.join(AMAZON_CATEGORIES)}; "
                "'recgrit datasets' lists everything."
            )
        for category in AMAZON_CATEGORIES[family]:
            output.print(f"{family}/{category}", highlight=False)
        if as_json:
            print_json({"family": family, "categories": AMAZON_CATEGORIES[family]})
        return
    table = build_table(
        "data.source",
        "users",
        "items",
        "interactions",
        "MB",
        "verified on",
        numbers=("users", "items", "interactions", "MB"),
    )
    table.columns[0].no_wrap = True
    for release in RELEASES:
        size = "–" if release.megabytes is None else f"{release.megabytes:g}"
        counts = (release.users, release.items, release.interactions)
        table.add_row(escape(release.source), *counts, size, release.verified)
    output.print(table)
    output.print("Fetched where data.path is not set; the size of a category is told as it comes.")
    output.print("Categories: recgrit datasets amazon2018. Terms:")
    terms = {release.terms: release.family.partition("-")[0] for release in RELEASES}
    for text, publisher in terms.items():
        output.print(f"  {publisher}: {text}")
    output.print("Your own files: data.source=table or data.source=recbole, with data.path.")
    if as_json:
        print_json({"datasets": [asdict(release) for release in RELEASES]})


@inspect_app.command("item")
def inspect_item(
    item_id: Annotated[str, typer.Argument(metavar="ITEM_ID")],
    run_directory: RunOption = None,
    relatives: Annotated[int, typer.Option(help="Items to show.", min=0)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show an item's title, its semantic ID, and the items that share its prefix."""
    opened = open_run(run_directory)
    table = opened.semantic_ids
    item_idx = table.item_idx(item_id)
    title = str(table.titles[item_idx])
    near = table.relatives(item_id, limit=relatives)
    output.print(f"[bold]{escape(title)}[/]  item {escape(item_id)}")
    output.print(f"semantic ID {table.text_of(item_id)}")
    if near.height:
        output.print(relatives_table(near))
    elif relatives:
        output.print("No other item shares its first code.")
    if as_json:
        print_json(
            {
                "item_id": item_id,
                "title": title,
                "semantic_id": table.text_of(item_id),
                "codes": list(table.codes_of(item_id)),
                "relatives": near.to_dicts(),
            }
        )


@inspect_app.command("run")
def inspect_run(run_directory: RunOption = None, as_json: JsonOption = False) -> None:
    """Show what a run was built from, stage by stage."""
    from recgrit.artifacts import read_manifest
    from recgrit.runs import LAYOUT, stage_directory

    opened = open_run(run_directory)
    table = build_table("stage", "folder", "fingerprint", "built from", "seconds", "created (UTC)")
    for column in table.columns[:3]:
        column.no_wrap = True
    table.title = escape(str(opened.directory))
    stages: dict[str, Any] = {}
    unfit: set[str] = set()
    for stage, (folder, parents) in LAYOUT.items():
        directory = stage_directory(opened.directory, stage)
        if not directory.is_dir():
            table.add_row(stage, "–", "", "", "", "")
            continue
        manifest = read_manifest(directory)
        stages[stage] = manifest.model_dump(mode="json")
        # Shown rather than refused: this is where one looks for what does not fit together.
        stale = [p for p in parents if stages.get(p, {}).get("fingerprint") != manifest.parents[p]]
        if stale:
            unfit.add(stage)
        origins = [f"[red]another {p}[/]" if p in stale else p for p in parents]
        origins += [escape(Path(name).name) for name in manifest.inputs]
        table.add_row(
            stage,
            folder,
            manifest.fingerprint,
            ", ".join(origins),
            f"{manifest.seconds:.1f}",
            manifest.created[:16].replace("T", " "),
        )
    output.print(table)
    output.print(funnel_table(stages["prepare"]["summary"]["funnel"]))
    if "tokenize" in stages:
        print_tokenizer(stages["tokenize"]["summary"])
    if "train" in stages:
        print_retriever(stages["train"]["summary"])
    if "evaluate" in stages and "evaluate" not in unfit:
        print_metrics(opened)
    if as_json:
        print_json({"run": str(opened.directory), "stages": stages})


def _write_lists(path: Path, shards: Iterator[pl.DataFrame]) -> int:
    """Write lists as they come and say how many rows they were.

    Raises:
        ArtifactError: Nothing can be written there.
    """
    from recgrit.artifacts import explain_write_failure
    from recgrit.data.recommendations import write_lists

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        num_rows = write_lists(shards, path).num_rows
    except OSError as error:
        reason = explain_write_failure(error) or error
        raise ArtifactError(f"Cannot write {path}: {reason}.") from None
    messages.print(f"{num_rows:,} rows written to {escape(str(path))}", soft_wrap=True)
    return num_rows
