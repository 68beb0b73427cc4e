"""Test the pages in a real browser, at the width of a desktop and of a phone."""

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
    assert [
        url for url in browser.requested_urls() if not url.startswith(("file:", "data:", "blob:"))
    ] == []
    wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == width
    # The figures are not wider than their cards either.
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

    # The test clicks the middle of the largest slice, which is inside the slice even in a ring.
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
    browser.run("document.querySelector('#tree-place button').click()")
    browser.wait(f"{level} === '0'")
    assert browser.logged() == []


@pytest.mark.parametrize("kind", ["treemap", "sunburst"])
def test_every_open_node_of_the_tree_has_a_way_back(
    browser: Any, tiny_page: Path, kind: str
) -> None:
    browser.open(tiny_page)
    browser.draw_all()
    browser.run(f"document.querySelector('[data-tree={kind}]').click()")
    browser.wait(f"document.querySelector('#tree .{kind}layer .slice')")
    level = "document.getElementById('tree').data[0].level"
    click = (
        "const place = document.getElementById('tree');"
        f"return place._ev.emit('plotly_{kind}click', {{ points: [{{ id: arguments[0] }}] }})"
    )
    tree = browser.run("return JSON.parse(document.getElementById('data').textContent).tree")
    parents = tree["parent"]
    leaf = next(node for node, parent in enumerate(parents) if parent > 0 and node not in parents)
    path = [leaf]
    while parents[path[0]] > 0:
        path.insert(0, parents[path[0]])
    for node in path[:-1]:
        browser.run(click, str(node))
        browser.wait(f"{level} === '{node}'")
    browser.run(click, str(leaf))  # An item has no children, so a click does not open it.
    assert browser.run(f"return {level}") == str(path[-2])
    for node in [*path[-3::-1], 0]:  # A click on the open node returns to its parent.
        browser.run(click, browser.run(f"return {level}"))
        browser.wait(f"{level} === '{node}'")


def test_numbers_of_one_thing_are_singular(browser: Any, tiny_page: Path) -> None:
    import re

    browser.open(tiny_page)
    browser.draw_all()
    assert browser.run(
        "const t = document.getElementById('tree').data[0];"
        "return [t.values.includes(1), t.customdata.filter(row => row[1] === '1 items').length]"
    ) == [True, 0]
    text = browser.run("return document.body.textContent + document.getElementById('data').text")
    assert re.findall(r"\b1 (?:items|users|targets|models|more items|more prefixes)\b", text) == []


def test_a_phone_has_the_contents_and_tables_that_show_they_scroll(
    browser: Any, tiny_page: Path
) -> None:
    browser.open(tiny_page, width=390)
    assert browser.run(
        "const bar = document.querySelector('nav.toc').getBoundingClientRect();"
        "return [bar.top, bar.height > 20 && bar.height < 80, bar.right <= innerWidth]"
    ) == [0, True, True]
    browser.run(
        "document.documentElement.style.scrollBehavior = 'auto';"
        "document.querySelector('nav.toc a[href=\"#origin\"]').click()"
    )
    # The section is shown below the bar, and the bar highlights its name.
    browser.wait("document.querySelector('nav.toc a.here')?.hash === '#origin'")
    top, bar, link = browser.run(
        "const at = (s) => document.querySelector(s).getBoundingClientRect();"
        "return [at('#origin h2').top, at('nav.toc').bottom, at('nav.toc a.here').right]"
    )
    assert bar <= top
    assert link <= 390
    wide = browser.run(
        "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > "
        "s.clientWidth).map(s => getComputedStyle(s).backgroundImage.split('gradient(').length)"
    )
    assert wide
    assert set(wide) == {5}


def test_labels_of_groups_do_not_collide_on_a_phone(browser: Any, tiny_page: Path) -> None:
    browser.open(tiny_page, width=390)
    browser.draw_all()
    collisions = browser.run(
        "const found = [];"
        "for (const axis of document.querySelectorAll('.xaxislayer-above')) {"
        "  const boxes = [...axis.querySelectorAll('.xtick text')].map(t =>"
        "    t.getBoundingClientRect()).sort((a, b) => a.left - b.left);"
        "  for (let i = 1; i < boxes.length; i++) if (boxes[i].left < boxes[i - 1].right &&"
        "    boxes[i].top < boxes[i - 1].bottom && boxes[i - 1].top < boxes[i].bottom)"
        "    found.push(axis.closest('.plot').id);"
        "}"
        "return found"
    )
    assert collisions == []


def test_paper_holds_all_columns_and_all_that_is_folded(browser: Any, tiny_page: Path) -> None:
    browser.open(tiny_page)
    browser.draw_all()
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": 690, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.run("return document.querySelectorAll('details:not([open])').length") == 0
        cut = browser.run(
            "return [...document.querySelectorAll('table, .plot .main-svg, pre')].filter(e =>"
            "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
            ".map(e => e.className + e.textContent.slice(0, 40))"
        )
        assert cut == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


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
    # The search finds single codes, codes with blanks as on the page, and codes without blanks.
    codes = [part.replace("_", "") for part in item["semantic_id"].strip("<>").split("><")]
    of_first = table.filter(pl.col("level_0") == item["level_0"])["title"].to_list()
    found = search(browser, codes[0])
    assert sorted(found[: len(of_first)]) == sorted(of_first)
    assert search(browser, " ".join(codes))[0] == item["title"]
    assert search(browser, "".join(codes).upper())[0] == item["title"]

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
    # A script would have opened an alert, and a tag would have become an element.
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
