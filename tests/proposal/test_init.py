"""From a shop's files to a YAML that loads, with what looks wrong said."""

from __future__ import annotations

import os
import pty
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from recgrit.config import load_config
from recgrit.data.prepare import prepare
from recgrit.experiment import ExperimentConfig
from recgrit.proposal.published import list_configs

Command = Callable[..., Any]
START = datetime(2024, 1, 1, tzinfo=UTC)
CONFIGS = Path(__file__).parents[2] / "configs"


def write_shop(folder: Path, *, form: str = "%Y-%m-%dT%H:%M:%SZ", again: bool = True) -> Path:
    """Visits of 60 customers who view, put into the cart and buy."""
    draw = random.Random(0)
    rows = []
    for customer in range(60):
        time = START + timedelta(hours=draw.randrange(2000))
        for item in draw.sample(range(30), 8):
            for kind in ("view", "cart", "purchase")[: draw.randint(1, 3) if again else 1]:
                time += timedelta(seconds=40)
                rows.append((time.strftime(form), f"c{customer}@shop", f"S{item:03d}", kind))
            time += timedelta(hours=1)
    columns = ["when", "customer", "sku", "event"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(folder / "events.csv")
    goods = [(f"S{i:03d}", f"Soap {i}", "Bath: & body", 2.5, 7) for i in range(30)]
    names = ["sku", "name", "category", "price", "stock"]
    pl.DataFrame(goods, schema=names, orient="row").write_csv(folder / "items.csv")
    return folder


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_shop(tmp_path)


def test_a_shop_gets_a_yaml_that_prepares(shop: Path, command: Command) -> None:
    done = command("init", "--events", "events.csv", "--items", "items.csv", "--json")
    assert done.code == 0, done.err
    assert "recgrit run shop.yaml" in done.out
    config = load_config(ExperimentConfig, "shop.yaml")
    table = config.data.table
    assert (table.user_id, table.item_id, table.timestamp) == ("customer", "sku", "when")
    assert (table.title, table.items_path) == ("name", Path("items.csv"))
    assert config.data.repeats == "first", "views, carts and purchases of one visit"
    assert prepare(config.data).interactions.num_users == 60
    text = Path("shop.yaml").read_text()
    assert "# event: event" in text
    assert "# event_weights: {view: 1, cart: 3, purchase: 5}" in text
    assert "# target_events: [purchase]" in text
    assert "Left out: category (the same for all items); stock (numbers or dates)." in text
    assert done.json()["warnings"] == []


def test_marks_taken_off_the_event_lines_leave_a_yaml(shop: Path, command: Command) -> None:
    assert command("init", "--events", "events.csv").code == 0
    lines = Path("shop.yaml").read_text().splitlines()
    taken = [
        line.replace("# ", "", 1) if line.strip().startswith(("# event", "# target_ev")) else line
        for line in lines
    ]
    values = yaml.safe_load("\n".join(taken))
    assert values["data"]["table"]["event"] == "event"
    assert values["data"]["event_weights"] == {"view": 1, "cart": 3, "purchase": 5}
    assert values["data"]["target_events"] == ["purchase"]


def test_a_yaml_is_not_overwritten_unasked(shop: Path, command: Command) -> None:
    Path("shop.yaml").write_text("mine")
    done = command("init", "--events", "events.csv")
    assert done.code == 2
    assert "--force" in done.told()
    assert Path("shop.yaml").read_text() == "mine"
    assert command("init", "--events", "events.csv", "--force").code == 0


def test_dates_that_can_be_read_in_two_ways_are_never_guessed(shop: Path, command: Command) -> None:
    log = pl.read_csv("events.csv").with_columns(
        pl.Series("when", [f"{1 + i % 9}/{1 + i % 7}/2024 10:{i % 60:02d}" for i in range(10_000)])
        .head(pl.read_csv("events.csv").height)
    )  # fmt: skip
    log.write_csv("events.csv")
    done = command("init", "--events", "events.csv", "--yes")
    assert done.code == 2
    assert "data.table.time_format" in done.told()
    known = "data.table.time_format=%m/%d/%Y %H:%M"
    assert command("init", known, "--events", "events.csv").code == 0
    assert load_config(ExperimentConfig, "shop.yaml").data.table.time_format == "%m/%d/%Y %H:%M"


def ask_in_a_terminal(answer: bytes, *arguments: str) -> tuple[int, str]:
    reader, terminal = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, "-m", "recgrit", "init", *arguments],
        env=os.environ | {"COLUMNS": "100", "TERM": "dumb"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    os.write(reader, answer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(reader)
    return started.wait(), shown.decode()


def test_a_terminal_is_asked_and_a_pipe_is_refused(shop: Path, command: Command) -> None:
    pl.read_csv("events.csv").with_columns(client="customer").write_csv("events.csv")
    done = command("init", "--events", "events.csv")
    assert done.code == 2
    assert "data.table.user_id" in done.told()
    assert "--yes" in done.told()
    code, shown = ask_in_a_terminal(b"client\n", "--events", "events.csv")
    assert code == 0, shown
    assert "Which column tells who interacted" in shown
    assert load_config(ExperimentConfig, "shop.yaml").data.table.user_id == "client"
    assert command("init", "--events", "events.csv", "--yes", "--force").code == 0
    assert load_config(ExperimentConfig, "shop.yaml").data.table.user_id == "customer"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda log: pl.concat([log, log.head(300)]), "count once"),
        (lambda log: log.with_columns(pl.col("when").str.head(10)), "All times are midnights"),
        (
            lambda log: log.with_columns(pl.col("when").str.replace("2024", "2124")),
            "lie in the future",
        ),
        (
            lambda log: pl.concat(
                [log, *(log.head(200).with_columns(customer=pl.lit("guest")) for _ in range(1))]
            ),
            "stand for people who were not known",
        ),
        (
            lambda log: log.with_columns(qty=pl.Series([-1, *[1] * (log.height - 1)])),
            "negative qty",
        ),
    ],
)
def test_what_looks_like_a_mistake_is_said_on_screen_and_in_the_yaml(
    shop: Path, command: Command, change: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    change(pl.read_csv("events.csv")).write_csv("events.csv")
    done = command("init", "--events", "events.csv", "--items", "items.csv", "--yes")
    assert done.code == 0, done.err
    assert expected in done.err
    assert expected in Path("shop.yaml").read_text()


def test_a_field_that_is_counted_from_the_log_is_told(shop: Path, command: Command) -> None:
    words = ["many", "few, mostly in spring", "none at all"] * 10
    items = pl.read_csv("items.csv").with_columns(pl.Series("sales_last_year", words))
    items.write_csv("items.csv")
    done = command("init", "--events", "events.csv", "--items", "items.csv")
    assert "sales_last_year may be counted from what people did" in done.err


def test_a_log_of_single_visits_is_refused_with_the_column_to_look_at(
    shop: Path, command: Command
) -> None:
    log = pl.read_csv("events.csv")
    log.with_columns(customer=pl.int_range(log.height)).write_csv("events.csv")
    done = command("init", "--events", "events.csv")
    assert done.code == 2
    assert "data.table.user_id" in done.told()


def test_odd_names_of_files_and_columns_survive(shop: Path, command: Command) -> None:
    odd = "wer: war's? #1 user"
    pl.read_csv("events.csv").rename({"customer": odd}).write_csv("a: b #c.csv")
    assert command("init", "--events", "a: b #c.csv", "--out", "x/my shop.yaml").code == 0
    config = load_config(ExperimentConfig, "x/my shop.yaml")
    assert config.data.path == Path("a: b #c.csv")
    assert config.data.table.user_id == odd


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.yaml")])
def test_published_sets_have_their_yaml_in_the_package(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("init", name).code == 0
    written = Path(f"{name}.yaml").read_text()
    assert f"recgrit run {name}.yaml" in written
    ours = (CONFIGS / f"{name}.yaml").read_text()
    assert yaml.safe_load(written) == yaml.safe_load(ours)
    assert set(list_configs()) == {path.stem for path in CONFIGS.glob("*.yaml")}


def test_a_published_set_is_found_by_its_source(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("init", "amazon2014/Beauty", "--out", "b.yaml").code == 0
    assert load_config(ExperimentConfig, "b.yaml").data.source == "amazon2014/Beauty"
    done = command("init", "movilens-100k")
    assert done.code == 2
    assert "Did you mean movielens-100k?" in done.told()


@pytest.mark.parametrize(
    "words", [(), ("movielens-100k", "--events", "e.csv"), ("retriever.epochs=3",)]
)
def test_a_call_that_names_nothing_or_two_things_is_refused(
    words: tuple[str, ...], command: Command
) -> None:
    done = command("init", *words)
    assert done.code == 2
    assert "recgrit init movielens-100k" in done.told()
