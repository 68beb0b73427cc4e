"""`recgrit init` writes a valid config from a shop's files, and reports what looks wrong."""

from __future__ import annotations

import os
import pty
import random
import re
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
from recgrit.proposal import sizes
from recgrit.proposal.published import list_configs

Command = Callable[..., Any]
START = datetime(2024, 1, 1, tzinfo=UTC)
CONFIGS = Path(__file__).parents[2] / "configs"


def write_shop(folder: Path, *, form: str = "%Y-%m-%dT%H:%M:%SZ", again: bool = True) -> Path:
    """Write the events of 60 customers who view, put into the cart and buy."""
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
    assert table.event == "event"
    assert config.data.event_weights == {"view": 1, "cart": 3, "purchase": 5}
    assert config.data.target_events == ("purchase",)
    text = Path("shop.yaml").read_text()
    assert "Left out: category (the same for all items); stock (numbers or dates)." in text
    assert done.json()["warnings"] == []


def rename_events(**names: str) -> None:
    log = pl.read_csv("events.csv")
    log.with_columns(pl.col("event").replace(names)).write_csv("events.csv")


def test_unknown_event_types_are_comments_that_can_be_uncommented(
    shop: Path, command: Command
) -> None:
    rename_events(view="gesehen", cart="korb", purchase="gekauft")
    assert command("init", "--events", "events.csv").code == 0
    config = load_config(ExperimentConfig, "shop.yaml")
    assert config.data.event_types is None
    assert prepare(config.data).interactions.num_users == 60
    text = Path("shop.yaml").read_text()
    assert "it is unknown what gesehen, korb, gekauft are worth" in text
    taken = [
        line.replace("# ", "", 1) if line.strip().startswith(("# event", "# target_ev")) else line
        for line in text.splitlines()
    ]
    Path("marks-off.yaml").write_text("\n".join(taken))
    assert prepare(load_config(ExperimentConfig, "marks-off.yaml").data).interactions.num_users


def test_a_terminal_is_asked_what_unknown_types_are_worth(shop: Path) -> None:
    rename_events(cart="korb", purchase="gekauft")
    code, shown = ask_in_a_terminal(b"3\n5\n", "--events", "events.csv")
    assert code == 0, shown
    config = load_config(ExperimentConfig, "shop.yaml").data
    assert sorted(config.event_weights.values()) == [1, 3, 5]  # type: ignore[type-var]
    assert config.target_events is not None
    assert len(config.target_events) == 1
    assert prepare(config).interactions.num_users == 60


def test_types_of_equal_counts_are_in_the_order_of_their_names(
    shop: Path, command: Command
) -> None:
    rows = pl.read_csv("events.csv").filter(pl.col("event") == "view").with_row_index("row")
    kinds = ["view", "click", "seen", "opened", "cart", "basket", "order", "purchase"]
    rows = rows.head(rows.height // len(kinds) * len(kinds))
    events = pl.Series("event", kinds * (rows.height // len(kinds)))
    rows.drop("row", "event").with_columns(events).write_csv("events.csv")
    command("init", "--events", "events.csv", "--items", "items.csv", "--yes")
    lines = Path("shop.yaml").read_text().splitlines()
    said = next(line for line in lines if "Types of events" in line)
    found = [word for word in re.findall(r"[a-z]+", said) if word in kinds]
    assert found == sorted(found)
    assert len(found) > 3


def test_refunds_are_named_and_left_out(shop: Path, command: Command) -> None:
    log = pl.read_csv("events.csv")
    pl.concat([log, log.head(20).with_columns(event=pl.lit("refund"))]).write_csv("events.csv")
    assert command("init", "--events", "events.csv").code == 0
    config = load_config(ExperimentConfig, "shop.yaml")
    assert config.data.event_weights["refund"] is None
    assert prepare(config.data).interactions.num_users == 60


def test_views_and_carts_of_one_second_are_no_duplicates(shop: Path, command: Command) -> None:
    log = pl.read_csv("events.csv")
    first = log.group_by("customer", "sku", maintain_order=True).first()
    log.update(
        first.select("customer", "sku", "when"), on=["customer", "sku"], how="left"
    ).write_csv("events.csv")
    done = command("init", "--events", "events.csv", "--json")
    assert done.json()["warnings"] == []


def test_ids_under_another_name_in_the_item_table_prepare(shop: Path, command: Command) -> None:
    pl.read_csv("items.csv").rename({"sku": "product_id"}).write_csv("items.csv")
    assert command("init", "--events", "events.csv", "--items", "items.csv").code == 0
    config = load_config(ExperimentConfig, "shop.yaml")
    assert (config.data.table.item_id, config.data.table.items_id) == ("sku", "product_id")
    titles = prepare(config.data).items.frame["title"]
    assert set(titles) == {f"Soap {i}" for i in range(30)}


def test_a_path_longer_than_the_column_of_comments_is_unchanged(
    shop: Path, command: Command
) -> None:
    place = Path("a-folder-with-a-name-of-some-length") / "events.csv"
    place.parent.mkdir()
    Path("events.csv").rename(place)
    assert command("init", "--events", str(place)).code == 0
    assert load_config(ExperimentConfig, "shop.yaml").data.path == place


def test_every_proposed_value_has_its_reason(shop: Path, command: Command) -> None:
    assert command("init", "--events", "events.csv", "--items", "items.csv").code == 0
    lines = Path("shop.yaml").read_text().splitlines()
    values = [line for line in lines if line.startswith(" ") and line.strip()[0] != "#"]
    assert [line for line in values if " # " not in line and not line.endswith(":")] == []


def test_a_yaml_is_not_overwritten_without_force(shop: Path, command: Command) -> None:
    Path("shop.yaml").write_text("mine")
    done = command("init", "--events", "events.csv")
    assert done.code == 2
    assert "--force" in done.error_message()
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
    assert "data.table.time_format" in done.error_message()
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
    assert "data.table.user_id" in done.error_message()
    assert "--yes" in done.error_message()
    code, shown = ask_in_a_terminal(b"client\n", "--events", "events.csv")
    assert code == 0, shown
    assert "Which column says who interacted" in shown
    assert load_config(ExperimentConfig, "shop.yaml").data.table.user_id == "client"
    assert command("init", "--events", "events.csv", "--yes", "--force").code == 0
    assert load_config(ExperimentConfig, "shop.yaml").data.table.user_id == "customer"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda log: pl.concat([log, log.head(300)]), "repeats are ignored"),
        (lambda log: log.with_columns(pl.col("when").str.head(10)), "All times are midnights"),
        (
            lambda log: log.with_columns(pl.col("when").str.replace("2024", "2124")),
            "are in the future",
        ),
        (
            lambda log: pl.concat(
                [log, *(log.head(200).with_columns(customer=pl.lit("guest")) for _ in range(1))]
            ),
            "to mean unknown users",
        ),
        (
            lambda log: log.with_columns(qty=pl.Series([-1, *[1] * (log.height - 1)])),
            "negative qty",
        ),
    ],
)
def test_likely_mistakes_are_reported_on_screen_and_in_the_yaml(
    shop: Path, command: Command, change: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    change(pl.read_csv("events.csv")).write_csv("events.csv")
    done = command("init", "--events", "events.csv", "--items", "items.csv", "--yes")
    assert done.code == 0, done.err
    assert expected in done.err
    assert expected in Path("shop.yaml").read_text()


def test_a_field_that_may_be_computed_from_interactions_is_reported(
    shop: Path, command: Command
) -> None:
    words = ["many", "few, mostly in spring", "none at all"] * 10
    items = pl.read_csv("items.csv").with_columns(pl.Series("sales_last_year", words))
    items.write_csv("items.csv")
    done = command("init", "--events", "events.csv", "--items", "items.csv")
    assert "sales_last_year may be computed from interactions" in done.err


def test_a_log_of_single_visits_is_refused_with_the_column_to_look_at(
    shop: Path, command: Command
) -> None:
    log = pl.read_csv("events.csv")
    log.with_columns(customer=pl.int_range(log.height)).write_csv("events.csv")
    done = command("init", "--events", "events.csv")
    assert done.code == 2
    assert "data.table.user_id" in done.error_message()


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
    assert "Did you mean movielens-100k?" in done.error_message()


@pytest.mark.parametrize(
    "words", [(), ("movielens-100k", "--events", "e.csv"), ("retriever.epochs=3",)]
)
def test_a_call_that_names_nothing_or_two_things_is_refused(
    words: tuple[str, ...], command: Command
) -> None:
    done = command("init", *words)
    assert done.code == 2
    assert "recgrit init movielens-100k" in done.error_message()


def write_log(**columns: object) -> None:
    """Write ``odd.csv``, with six purchases of each of 20 customers. Arguments replace columns."""
    rows = [(user, item) for user in range(20) for item in range(6)]
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user, _ in rows],
            "item_id": [f"i{(3 * user + 2 * item) % 12}" for user, item in rows],
            "timestamp": [
                (START + timedelta(days=user, hours=item)).strftime("%Y-%m-%dT%H:%M:%S")
                for user, item in rows
            ],
        }
    ).with_columns(**columns)
    frame.write_csv("odd.csv")


def init_odd(command: Command, *settings: str) -> Any:
    return command("init", "--events", "odd.csv", "--out", "odd.yaml", "--yes", *settings)


def output_of(done: Any) -> str:
    """Return the output and the errors without line breaks and frames."""
    return " ".join((done.out + done.err).replace("│", " ").split())


def as_text(form: str) -> pl.Expr:
    return pl.col("timestamp").str.to_datetime().dt.to_string(form)


@pytest.mark.parametrize("form", ["%G-W%V-%u", "%d. März %Y", "%H:%M:%S"])
def test_a_timestamp_column_without_readable_times_is_refused(
    form: str, shop: Path, command: Command
) -> None:
    write_log(timestamp=as_text(form))
    done = init_odd(command)
    assert done.code == 2
    assert "odd.csv: 120 of 120 lines are malformed" in output_of(done)
    assert "times in timestamp such as" in output_of(done)


def test_times_in_categories_and_compact_iso_are_found(shop: Path, command: Command) -> None:
    write_log(timestamp=as_text("%Y%m%dT%H%M%SZ"))
    assert init_odd(command).code == 0
    write_log()
    frame = pl.read_csv("odd.csv").with_columns(pl.col("timestamp").cast(pl.Categorical))
    frame.write_parquet("odd.parquet")
    arguments = ("--events", "odd.parquet", "--out", "categories.yaml", "--yes")
    assert command("init", *arguments).code == 0
    table = load_config(ExperimentConfig, "categories.yaml").data.table
    assert table.timestamp == "timestamp"


def test_a_column_of_times_of_day_next_to_dates_is_reported(shop: Path, command: Command) -> None:
    write_log(time=as_text("%H:%M:%S"), timestamp=as_text("%Y-%m-%d"))
    done = init_odd(command)
    assert done.code == 0, done.err
    assert "The column time holds times of day" in output_of(done)


@pytest.mark.parametrize("separator", ["~", " ", "^"])
def test_a_file_of_one_column_is_refused_with_the_separator_to_set(
    separator: str, shop: Path, command: Command
) -> None:
    write_log()
    Path("odd.csv").write_text(Path("odd.csv").read_text().replace(",", separator))
    done = init_odd(command)
    assert done.code == 2
    setting = f"data.table.separator=\"'{separator}'\""
    assert "odd.csv has 1 column" in output_of(done)
    assert setting in output_of(done)
    assert init_odd(command, setting.replace('"', "")).code == 0


def test_a_first_line_with_an_iso_time_is_no_header(shop: Path, command: Command) -> None:
    write_log()
    Path("odd.csv").write_text(Path("odd.csv").read_text().partition("\n")[2])
    done = init_odd(command)
    assert done.code == 2
    assert "seems to have no header" in output_of(done)


def test_files_without_rows_are_named(shop: Path, command: Command) -> None:
    Path("odd.csv").write_text("")
    for arguments in (["odd.csv"], ["events.csv", "--items", "odd.csv"]):
        done = command("init", "--events", *arguments, "--out", "odd.yaml", "--yes")
        assert done.code == 2
        assert "odd.csv holds no row of data" in output_of(done)


def test_a_log_of_one_repeated_item_is_reported_as_too_short(shop: Path, command: Command) -> None:
    write_log(item_id=pl.lit("i1"))
    assert "three interactions with different items" in output_of(init_odd(command))


def test_all_placeholder_user_ids_are_named(shop: Path, command: Command) -> None:
    guests = {"u3": "guest", "u4": "nan"}
    write_log(user_id=pl.col("user_id").replace(guests))
    shown = output_of(init_odd(command))
    assert "'guest'" in shown
    assert "'nan'" in shown


def test_events_left_out_are_named_where_they_leave_no_history(
    shop: Path, command: Command
) -> None:
    kind = pl.when(pl.int_range(pl.len()) % 6 == 0).then(pl.lit("purchase"))
    write_log(event=kind.otherwise(pl.lit("refund")))
    done = init_odd(command)
    assert done.code == 2
    assert "three interactions beside refund, which are left out" in output_of(done)


def test_a_user_table_goes_into_the_yaml_with_its_columns(shop: Path, command: Command) -> None:
    people = [(f"c{i}@shop", "free" if i % 2 else "paid", 20 + i) for i in range(60)]
    users = pl.DataFrame(people, schema=["customer", "plan", "age"], orient="row")
    users.write_csv("users.csv")
    done = command("init", "--events", "events.csv", "--items", "items.csv", "--users", "users.csv")
    assert done.code == 0, done.err
    config = load_config(ExperimentConfig, "shop.yaml")
    assert config.data.table.users_path == Path("users.csv")
    found = prepare(config.data).users
    assert found is not None
    assert found.columns == ["user_id", "plan", "age"]
    assert config.retriever.user_attributes == ()
    text = Path("shop.yaml").read_text()
    for line in ("# user_attributes: [plan, age]   # what the model may read", "# evaluation:"):
        assert line in text
    unmarked = re.sub(r"(?m)^( *)# (user_attributes|evaluation:|  segments)", r"\1\2", text)
    chosen = load_config(ExperimentConfig, _write_yaml("unmarked.yaml", unmarked))
    assert chosen.retriever.user_attributes == ("plan", "age")
    assert chosen.evaluation.segments == ("plan", "age")


def _write_yaml(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_a_user_table_of_other_users_is_refused(shop: Path, command: Command) -> None:
    Path("users.csv").write_text("customer,plan\nC0@SHOP,free\nC1@SHOP,paid\n")
    done = command("init", "--events", "events.csv", "--users", "users.csv")
    assert done.code == 2
    told = " ".join(done.err.replace("│", " ").split())
    assert "None of the 60 users of the log is described in the user table." in told
    assert "data.table.user_id" in told
    done = command("init", "--events", "events.csv", "data.table.users_path=users.csv")
    assert done.code == 2
    assert "--users" in done.err


def test_a_very_large_catalogue_gets_a_retriever_of_constant_size(
    shop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("init", "--events", "events.csv").code == 0
    assert load_config(ExperimentConfig, "shop.yaml").retriever.size == "catalogue"
    monkeypatch.setattr(sizes, "MANY_ITEMS", 30)
    assert command("init", "--events", "events.csv", "--out", "large.yaml").code == 0
    retriever = load_config(ExperimentConfig, "large.yaml").retriever
    assert (retriever.size, retriever.node_buckets) == ("constant", 65_536)
