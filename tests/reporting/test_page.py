"""The pages in a real browser, at desktop and phone width."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.forging import forge_run

Command = Callable[..., Any]
NASTY = "<script>alert(1)</script><b>&amp;"


def rows(browser: Any) -> list[str]:
    found = browser.run(
        "return [...document.querySelectorAll('#items tr.item')].map(r => r.cells[0].textContent)"
    )
    return list(found)


def search(browser: Any, text: str) -> list[str]:
    browser.run(
        "const s = document.getElementById('search'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        text,
    )
    return rows(browser)


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (1440, True), (390, False)])
def test_the_page_draws_without_errors_requests_or_sideways_scrolling(
    browser: Any, tiny_page: Path, width: int, dark: bool
) -> None:
    browser.open(tiny_page, width=width, dark=dark)
    assert browser.draw_all() >= 14
    assert browser.logged() == []
    assert [url for url in browser.asked() if not url.startswith(("file:", "data:", "blob:"))] == []
    wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == width
    # No figure is wider than its card either.
    assert (
        browser.run(
            "return [...document.querySelectorAll('.plot')].filter(p => "
            "p.querySelector('.main-svg').getBoundingClientRect().right > "
            "p.closest('.card').getBoundingClientRect().right + 1).map(p => p.id)"
        )
        == []
    )
    assert browser.run("return document.documentElement.dataset.theme") == (
        "dark" if dark else "light"
    )


def test_the_button_turns_light_to_dark_in_page_and_figures(browser: Any, tiny_page: Path) -> None:
    browser.open(tiny_page)
    browser.draw_all()
    read = (
        "return [getComputedStyle(document.body).backgroundColor, "
        "document.getElementById('loss').layout.font.color]"
    )
    light = browser.run(read)
    browser.run("document.getElementById('theme').click()")
    dark = browser.run(read)
    assert light[0] != dark[0]
    assert light[1] != dark[1]


@pytest.mark.parametrize("kind", ["treemap", "sunburst"])
def test_a_click_zooms_into_the_tree_and_back(browser: Any, tiny_page: Path, kind: str) -> None:
    browser.open(tiny_page)
    browser.draw_all()
    browser.run(f"document.querySelector('[data-tree={kind}]').click()")
    browser.wait(f"document.querySelector('#tree .{kind}layer .slice')")
    level = "document.getElementById('tree').data[0].level"
    assert browser.run(f"return {level}") == "0"
    from selenium.webdriver import ActionChains

    # The largest tile: its middle is its own, in a ring too.
    first, name = browser.run(
        "const tree = JSON.parse(document.getElementById('data').textContent).tree;"
        "document.getElementById('tree').scrollIntoView({behavior: 'instant'});"
        f"return [...document.querySelectorAll('#tree .{kind}layer .slice')]"
        ".map(s => [s, s.__data__.data.data.id]).filter(([, id]) => tree.parent[id] === 0)"
        ".sort((a, b) => tree.num_items[b[1]] - tree.num_items[a[1]])[0]"
    )
    path = first.find_element("css selector", "path")
    ActionChains(browser.driver).move_to_element(path).click().perform()
    browser.wait(f"{level} === '{name}'")
    browser.run("document.getElementById('tree-home').click()")
    browser.wait(f"{level} === '0'")
    assert browser.logged() == []


def test_search_finds_titles_ids_and_codes_and_shows_siblings(
    browser: Any, tiny_page: Path, tiny_run: Any
) -> None:
    table = pl.read_parquet(tiny_run.directory / "semantic_ids" / "semantic_ids.parquet")
    browser.open(tiny_page)
    assert len(rows(browser)) == 15
    item = table.row(7, named=True)
    assert search(browser, item["title"].upper()) == [item["title"]]
    assert search(browser, item["semantic_id"]) == [item["title"]]
    first = item["semantic_id"].split(">")[0] + ">"
    together = table.filter(pl.col("semantic_id").str.starts_with(first))["title"].to_list()
    assert sorted(search(browser, first)) == sorted(together)
    assert search(browser, "no such film") == []
    assert browser.run("return document.getElementById('found').textContent") == "Nothing found"

    alone = table.group_by("level_0").len().filter(pl.col("len") > 1)["level_0"]
    member = table.filter(pl.col("level_0").is_in(alone.implode())).row(0, named=True)
    search(browser, member["semantic_id"])
    browser.run("document.querySelector('#items .open-item').click()")
    shown = browser.run("return document.querySelector('.siblings').textContent")
    siblings = table.filter(
        (pl.col("level_0") == member["level_0"]) & (pl.col("item_id") != member["item_id"])
    )
    assert any(title in shown for title in siblings["title"])


def test_a_title_that_is_a_script_is_text_everywhere(
    browser: Any, copied_run: Path, command: Command, tmp_path: Path
) -> None:
    for name in ("data/items.parquet", "semantic_ids/semantic_ids.parquet"):
        frame = pl.read_parquet(copied_run / name)
        metadata = pl.read_parquet_metadata(copied_run / name)
        kept = {key: value for key, value in metadata.items() if key.startswith("recgrit.")}
        frame.with_columns(title=pl.lit(NASTY)).write_parquet(copied_run / name, metadata=kept)
    forge_run(copied_run)
    page = tmp_path / "nasty.html"
    assert command("report", copied_run, "--out", page).code == 0
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    browser.open(page)
    browser.draw_all()
    # An alert would have stopped the page; a tag would have become an element.
    assert rows(browser)[0] == NASTY
    assert browser.run("return document.querySelector('ol.listed li').textContent.trim()") == NASTY
    assert browser.logged() == []


def test_runs_are_compared_on_a_page_of_their_own(
    browser: Any, tiny_run: Any, copied_run: Path, command: Command, tmp_path: Path
) -> None:
    page = tmp_path / "compare.html"
    assert command("run", copied_run, "retriever.epochs=1").code == 0
    shutil.rmtree(copied_run / "recommendations")
    assert command("compare", tiny_run.directory, copied_run, "--out", page).code == 0
    for width in (1440, 390):
        browser.open(page, width=width)
        assert browser.draw_all() >= 8
        assert browser.logged() == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
    settings = browser.run("return document.getElementById('settings').textContent")
    assert "retriever.epochs" in settings
    assert "run.dir" not in settings
