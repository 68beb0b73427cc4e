"""Columns of users' logs are found by name and content. In doubt, the user is asked."""

from __future__ import annotations

import polars as pl
import pytest

from recgrit.errors import ConfigError
from recgrit.proposal.columns import find_columns
from recgrit.proposal.events import EventChoice, choose_events, settle_targets
from recgrit.proposal.questions import Ask, Question, refuse, take_default

TIMES = [1_700_000_000, 1_700_000_100, 1_700_000_200, 1_700_000_300]
DATES = ["2024-01-01", "2024-01-02", "2024-01-02", "2024-01-05"]
PEOPLE = ["u1", "u2", "u1", "u3"]
GOODS = ["s1", "s2", "s2", "s3"]
KINDS = ["view", "cart", "view", "purchase"]

# Columns of published logs and of shops, and the names of the user, item and time columns.
LOGS = {
    "retailrocket": (
        {"timestamp": TIMES, "visitorid": [1, 2, 1, 3], "event": KINDS, "itemid": [7, 8, 8, 9]},
        ("visitorid", "itemid", "timestamp"),
    ),
    "rees46": (
        {
            "event_time": [f"{day} 00:00:00 UTC" for day in DATES],
            "event_type": KINDS,
            "product_id": [7, 8, 8, 9],
            "category_id": [1, 1, 1, 2],
            "brand": ["a", "a", "b", None],
            "price": [1.5, 2.5, 2.5, 3.0],
            "user_id": [1, 2, 1, 3],
            "user_session": ["x", "y", "x", "z"],
        },
        ("user_id", "product_id", "event_time"),
    ),
    "online retail": (
        {
            "InvoiceNo": [536365, 536365, 536366, 536367],
            "StockCode": ["85123A", "71053", "71053", "84406B"],
            "Description": ["LANTERN", "LIGHT", "LIGHT", "HANGER"],
            "Quantity": [6, 6, 8, -1],
            "InvoiceDate": [f"{day} 08:26" for day in DATES],
            "UnitPrice": [2.55, 3.39, 2.75, 3.39],
            "CustomerID": [17850, 17850, 13047, 12583],
            "Country": ["UK", "UK", "UK", "France"],
        },
        ("CustomerID", "StockCode", "InvoiceDate"),
    ),
    "h&m": (
        {"t_dat": DATES, "customer_id": PEOPLE, "article_id": GOODS, "price": [0.1, 0.2, 0.2, 0.3]},
        ("customer_id", "article_id", "t_dat"),
    ),
    "german": (
        {"Kundennummer": PEOPLE, "Artikelnummer": GOODS, "gekauft": DATES},
        ("Kundennummer", "Artikelnummer", "gekauft"),
    ),
}


def never(question: Question) -> str:
    raise AssertionError(question.text)


@pytest.mark.parametrize("name", LOGS)
def test_columns_of_common_logs_are_found_without_a_question(name: str) -> None:
    columns, expected = LOGS[name]
    found = find_columns(pl.DataFrame(columns), None, {}, never)
    assert (found.user_id, found.item_id, found.timestamp) == expected


@pytest.mark.parametrize("name", LOGS)
def test_a_log_of_one_user_needs_no_question(name: str) -> None:
    columns, expected = LOGS[name]
    one = pl.DataFrame(columns).with_columns(pl.col(expected[0]).first())
    assert find_columns(one, None, {}, never).user_id == expected[0]


@pytest.mark.parametrize("name", LOGS)
def test_the_same_columns_are_found_in_text(name: str) -> None:
    columns, expected = LOGS[name]
    texts = pl.DataFrame(columns).with_columns(pl.all().cast(pl.String))
    found = find_columns(texts, None, {}, never)
    assert (found.user_id, found.item_id, found.timestamp) == expected


@pytest.mark.parametrize("names", [("event", KINDS), ("what", KINDS)])
def test_kinds_of_events_are_found_by_their_words(names: tuple[str, list[str]]) -> None:
    log = {"user_id": PEOPLE, "item_id": GOODS, "timestamp": TIMES, names[0]: names[1]}
    assert find_columns(pl.DataFrame(log), None, {}, never).event == names[0]


@pytest.mark.parametrize("types", [["a", "b", "a", "b"], [1, 4, 1, 2]])
def test_a_column_named_as_event_type_is_found_whatever_its_values(
    types: list[object],
) -> None:
    log = {"user_id": PEOPLE, "item_id": GOODS, "timestamp": TIMES, "behavior_type": types}
    assert find_columns(pl.DataFrame(log), None, {}, never).event == "behavior_type"


def test_a_column_of_few_other_words_is_no_event() -> None:
    log = {"user_id": PEOPLE, "item_id": GOODS, "timestamp": TIMES, "type": ["a", "b", "a", "b"]}
    assert find_columns(pl.DataFrame(log), None, {}, never).event is None


def test_the_item_column_is_the_one_whose_ids_are_in_the_item_table() -> None:
    log = pl.DataFrame({"user": PEOPLE, "product": DATES, "code": GOODS, "time": TIMES})
    items = pl.DataFrame({"code": ["s1", "s2", "s3"], "name": ["A", "B", "C"]})
    found = find_columns(log, items, {}, never)
    assert (found.item_id, found.title) == ("code", "name")


@pytest.mark.parametrize(
    ("log", "items", "expected"),
    [
        # Columns with different names are matched by their values.
        ({"sku": GOODS}, {"product_id": ["s1", "s2", "s3"]}, ("sku", "product_id")),
        ({"sku": GOODS}, {"nr": ["s1", "s2", "s3"]}, ("sku", "nr")),
        ({"thing": GOODS}, {"nr": ["s1", "s2", "s3"]}, ("thing", "nr")),
        # The column `id` exists on both sides, but in the log it is the number of a row.
        (
            {"id": [1, 2, 3, 4], "sku": GOODS},
            {"id": ["s1", "s2", "s3"], "sku": ["x", "x", "y"]},
            ("sku", "id"),
        ),
        # User numbers also occur as item numbers.
        (
            {"customer_no": [1, 2, 1, 3], "sku": [1, 2, 2, 3]},
            {"product_id": [1, 2, 3]},
            ("sku", "product_id"),
        ),
        # One side has numbers, and the other side has the same numbers as text.
        ({"sku": [7, 8, 8, 9]}, {"product_id": ["7", " 8", "9"]}, ("sku", "product_id")),
        # No ids match, so the names decide. Reading all rows later refuses such files.
        ({"sku": GOODS}, {"product_id": ["a", "b", "c"]}, ("sku", "product_id")),
    ],
)
def test_item_ids_under_two_names_are_found_by_what_they_hold(
    log: dict[str, list[object]], items: dict[str, list[object]], expected: tuple[str, str]
) -> None:
    people = {} if "customer_no" in log else {"customer": PEOPLE}
    frame = pl.DataFrame({**people, **log, "time": TIMES})
    found = find_columns(frame, pl.DataFrame({**items, "name": ["A", "B", "B"]}), {}, never)
    assert (found.item_id, found.items_id) == expected
    assert found.title == "name"


def test_an_item_table_without_a_likely_id_column_is_refused_unless_set() -> None:
    log = pl.DataFrame({"user": PEOPLE, "sku": GOODS, "time": TIMES})
    items = pl.DataFrame({"nr": ["a", "b"], "code": ["c", "d"]})
    with pytest.raises(ConfigError, match=r"Set data\.table\.items_id to one of nr, code"):
        find_columns(log, items, {}, take_default)
    assert find_columns(log, items, {"items_id": "nr"}, never).items_id == "nr"


def test_two_possible_user_columns_need_a_question_with_a_default() -> None:
    log = pl.DataFrame({"buyer": PEOPLE, "client": GOODS, "sku": GOODS, "time": TIMES})
    asked: list[Question] = []

    def answer(question: Question) -> str:
        asked.append(question)
        return "buyer"

    assert find_columns(log, None, {}, answer).user_id == "buyer"
    [question] = asked
    assert set(question.options) == {"buyer", "client"}
    assert question.default == "client"
    assert question.setting == "data.table.user_id"


def test_a_column_that_is_set_needs_no_question() -> None:
    log = pl.DataFrame({"buyer": PEOPLE, "client": GOODS, "sku": GOODS, "time": TIMES})
    assert find_columns(log, None, {"user_id": "buyer"}, never).user_id == "buyer"


def test_columns_without_any_sign_are_not_guessed() -> None:
    log = pl.DataFrame({"a": PEOPLE, "b": GOODS, "time": TIMES})
    with pytest.raises(ConfigError, match=r"Set data\.table\.item_id to one of a, b"):
        find_columns(log, None, {}, take_default)


def test_an_unanswered_question_names_setting_and_option() -> None:
    question = Question("Which?", ["a", "b"], "a", "data.table.user_id")
    with pytest.raises(ConfigError, match=r"data\.table\.user_id='a'.*--yes"):
        refuse(question)
    assert take_default(question) == "a"


def test_types_with_known_names_need_no_question() -> None:
    choice = choose_events({"page_view": 9, "addtocart": 3, "sale": 1, "refund": 1}, 0, never)
    assert choice.weights == {"page_view": 1, "addtocart": 3, "sale": 5, "refund": None}
    assert choice.targets == ("sale",)
    assert choice.is_sure


@pytest.mark.parametrize("ask", [take_default, refuse])
def test_types_without_a_known_name_stay_in_doubt_without_an_answer(ask: Ask) -> None:
    choice = choose_events({"view": 9, "scroll": 3}, 0, ask)
    assert not choice.is_sure
    assert "scroll is worth" in choice.doubt


def test_answers_set_the_weights_of_unknown_types() -> None:
    answers = {"'scroll'": "null", "'gekauft'": "5"}

    def answer(question: Question) -> str:
        return next(given for name, given in answers.items() if name in question.text)

    choice = choose_events({"view": 9, "scroll": 3, "gekauft": 2}, 0, answer)
    assert choice.weights == {"view": 1, "scroll": None, "gekauft": 5}
    assert choice.targets == ("gekauft",)
    assert choice.is_sure


def test_rows_without_a_type_put_the_types_in_doubt() -> None:
    assert choose_events({"view": 990, "sale": 9}, 1, never).is_sure
    assert "100 rows have no type" in choose_events({"view": 9, "sale": 9}, 100, never).doubt


def test_a_type_that_no_user_has_twice_is_not_the_only_target() -> None:
    weights = {"view": 1, "cart": 3, "sale": 5}
    choice = EventChoice(weights, ("sale",))
    # Each of 20 users has three views and two carts. One user has a sale.
    events = [0, 0, 0, 1, 1]
    rows = pl.DataFrame(
        {"user_id": [user for user in range(20) for _ in events] + [0], "event": events * 20 + [2]}
    )
    found = settle_targets(choice, rows, ["view", "cart", "sale"])
    assert (found.targets, found.asked) == (("cart", "sale"), 20)
