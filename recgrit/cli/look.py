"""Commands that show what can be run and what a run made: settings, datasets, inspect."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.display import (
    build_table,
    funnel_table,
    output,
    print_metrics,
    print_model,
    print_tokenizer,
    relatives_table,
)
from recgrit.errors import ArtifactError, ConfigError
from recgrit.progress import track

if TYPE_CHECKING:
    from recgrit.runs import Run


@app.command(rich_help_panel="Look")
def settings(
    word: Annotated[
        str | None, typer.Argument(help="Text in a setting's name or in its meaning.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List settings with meaning, default and values: all, or those with a word in name or meaning.

    Example: `recgrit settings dropout`
    """
    from recgrit.settings import list_sections, search_settings

    known = [setting for section in list_sections() for setting in section.settings]
    found = known if word is None else search_settings(word)
    if not found:
        close = difflib.get_close_matches(
            str(word), [setting.name.rpartition(".")[2] for setting in known], n=1
        )
        raise ConfigError(
            f"No setting has {word!r} in its name or meaning."
            + (f" Did you mean {close[0]}?" if close else "")
            + " 'recgrit settings' lists them all."
        )
    for setting in found:
        output.print(f"{escape(setting.name)} = {escape(setting.default)}")
        text = f"{setting.meaning.replace('``', '')} [{setting.values}]"
        output.print(Padding(escape(text), (0, 0, 0, 4)))
    if as_json:
        print_json({"settings": [asdict(setting) for setting in found]})


@app.command(rich_help_panel="Look")
def datasets(
    family: Annotated[
        str | None,
        typer.Argument(
            help="Family whose categories to list: amazon2014, amazon2018 or amazon2023."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the published data sets that can be read, their terms, and what reading was verified on.

    Example: `recgrit datasets amazon2018`
    """
    from recgrit.data.categories import AMAZON_CATEGORIES
    from recgrit.data.releases import RELEASES

    if family is not None:
        if family not in AMAZON_CATEGORIES:
            raise ConfigError(
                f"There is no family of data sets {family!r}. There are "
                f"{', '.join(AMAZON_CATEGORIES)}; 'recgrit datasets' lists everything."
            )
        for category in AMAZON_CATEGORIES[family]:
            output.print(f"{family}/{category}")
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
    output.print(
        "recgrit downloads these if data.path is not set, and then shows the size of a category."
    )
    output.print("To list categories: recgrit datasets amazon2018. Terms of use:")
    terms = {release.terms: release.family.partition("-")[0] for release in RELEASES}
    for text, publisher in terms.items():
        output.print(f"  {publisher}: {text}")
    output.print("Your own files: data.source=table or data.source=recbole, with data.path.")
    if as_json:
        print_json({"datasets": [asdict(release) for release in RELEASES]})


inspect_app = typer.Typer(help="Show the items or the stages of a run.", no_args_is_help=True)
app.add_typer(inspect_app, name="inspect", rich_help_panel="Look")


@inspect_app.command("item")
def inspect_item(
    item_id: Annotated[
        str, typer.Argument(metavar="ITEM_ID", help="Id of the item, as in the raw files.")
    ],
    run_directory: RunOption = None,
    relatives: Annotated[
        int, typer.Option(metavar="N", help="Largest number of items with a shared prefix.", min=0)
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show an item's title, its semantic ID, and the items that share a prefix with it.

    Example: `recgrit inspect item 242 --run runs/movielens-100k`
    """
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
def inspect_run(
    run_directory: RunOption = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", metavar="", help="Read all files as a whole and compare their checksums."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the stages of a run, the artifacts that each was built from, and its metrics.

    Example: `recgrit inspect run --run runs/movielens-100k --verify`
    """
    from recgrit.layout import stage_directory

    opened = open_run(run_directory)
    if verify:
        _verify(opened)
    table = build_table("stage", "folder", "fingerprint", "built from", "seconds", "created (UTC)")
    for column in table.columns[:3]:
        column.no_wrap = True
    table.title = escape(str(opened.directory))
    stages: dict[str, Any] = {}
    unfit: set[str] = set()
    for stage in opened.stages():
        directory = stage_directory(opened.directory, stage)
        if not opened.has(stage):
            table.add_row(stage, "–", "", "", "", "")
            continue
        manifest = opened.record(stage)
        stages[stage] = manifest.model_dump(mode="json")
        # A parent that does not fit is shown and not refused, so that the user can find it.
        parents = manifest.parents
        stale = [p for p in parents if stages.get(p, {}).get("fingerprint") != parents[p]]
        if stale or unfit.intersection(parents):
            unfit.add(stage)
        origins = [f"[red]another {escape(p)}[/]" if p in stale else escape(p) for p in parents]
        origins += [escape(Path(name).name) for name in manifest.inputs]
        table.add_row(
            stage,
            str(directory.relative_to(opened.directory)),
            escape(manifest.fingerprint),
            ", ".join(origins),
            f"{manifest.seconds:.1f}",
            escape(manifest.created[:16].replace("T", " ")),
        )
    output.print(table)
    waiting = opened.waiting_settings()
    if waiting:
        output.print("Settings changed in config.yaml after the run, not used yet:")
    for name, (made, planned) in waiting.items():
        text = f"  {name} = {planned or 'unset'} (made with {made or 'unset'})"
        output.print(escape(text), soft_wrap=True, highlight=False)
    output.print(funnel_table(stages["prepare"]["summary"]["funnel"]))
    if "tokenize" in stages:
        print_tokenizer(stages["tokenize"]["summary"])
    if "train" in stages:
        print_model(stages["train"]["summary"])
    if "evaluate" in stages and "evaluate" not in unfit:
        print_metrics(opened)
    if as_json:
        changed = {name: {"made": a, "planned": b} for name, (a, b) in waiting.items()}
        print_json({"run": str(opened.directory), "stages": stages, "waiting_settings": changed})


def _verify(run: Run) -> None:
    """Compare every file of a run as a whole with its manifest.

    Raises:
        ArtifactError: Files differ from what was written. The message names all of them.
    """
    from recgrit.artifacts import open_artifact
    from recgrit.layout import stage_directory

    broken, num_files, num_bytes = [], 0, 0
    folders = [stage_directory(run.directory, name) for name in run.stages() if run.has(name)]
    for folder in track(folders, "verifying", len(folders)):
        try:
            files = open_artifact(folder, whole=True).files
        except ArtifactError as error:
            broken.append(str(error))
            continue
        num_files += len(files)
        num_bytes += sum(record.bytes for record in files.values())
    if broken:
        raise ArtifactError("\n".join(broken))
    output.print(
        f"{num_files} files ({num_bytes / 2**20:,.1f} MiB) are unchanged since they were written."
    )
