"""Columns of logs that people have, found by name and content, or asked about."""

from __future__ import annotations

import polars as pl
import pytest

from recgrit.errors import ConfigError
from recgrit.proposal.columns import find_columns
from recgrit.proposal.events import propose_targets, propose_weights
from recgrit.proposal.questions import Question, refuse, take_default

TIMES = [1_700_000_000, 1_700_000_100, 1_700_000_200, 1_700_000_300]
DATES = ["2024-01-01", "2024-01-02", "2024-01-02", "2024-01-05"]
PEOPLE = ["u1", "u2", "u1", "u3"]
GOODS = ["s1", "s2", "s2", "s3"]
KINDS = ["view", "cart", "view", "purchase"]

# Headers of published logs and of shops: the columns, and which are the user, item and time.
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
def test_the_same_columns_are_found_in_text(name: str) -> None:
    columns, expected = LOGS[name]
    texts = pl.DataFrame(columns).with_columns(pl.all().cast(pl.String))
    found = find_columns(texts, None, {}, never)
    assert (found.user_id, found.item_id, found.timestamp) == expected


@pytest.mark.parametrize("names", [("event", KINDS), ("what", KINDS)])
def test_kinds_of_events_are_found_by_their_words(names: tuple[str, list[str]]) -> None:
    log = {"user_id": PEOPLE, "item_id": GOODS, "timestamp": TIMES, names[0]: names[1]}
    assert find_columns(pl.DataFrame(log), None, {}, never).event == names[0]


def test_a_column_of_few_other_words_is_no_event() -> None:
    log = {"user_id": PEOPLE, "item_id": GOODS, "timestamp": TIMES, "type": ["a", "b", "a", "b"]}
    assert find_columns(pl.DataFrame(log), None, {}, never).event is None


def test_the_column_whose_ids_stand_in_the_item_table_is_the_items() -> None:
    log = pl.DataFrame({"user": PEOPLE, "product": DATES, "code": GOODS, "time": TIMES})
    items = pl.DataFrame({"code": ["s1", "s2", "s3"], "name": ["A", "B", "C"]})
    found = find_columns(log, items, {}, never)
    assert (found.item_id, found.title) == ("code", "name")


def test_item_ids_under_two_names_are_refused_with_both() -> None:
    log = pl.DataFrame({"user": PEOPLE, "product_id": GOODS, "time": TIMES})
    items = pl.DataFrame({"id": ["s1", "s2", "s3"], "name": ["A", "B", "C"]})
    with pytest.raises(ConfigError, match=r"product_id of the log and in id of the item table"):
        find_columns(log, items, {}, never)


def test_two_columns_that_may_be_the_user_are_asked_about_with_the_likelier_first() -> None:
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


def test_what_is_set_is_not_asked() -> None:
    log = pl.DataFrame({"buyer": PEOPLE, "client": GOODS, "sku": GOODS, "time": TIMES})
    assert find_columns(log, None, {"user_id": "buyer"}, never).user_id == "buyer"


def test_columns_without_any_sign_are_not_guessed() -> None:
    log = pl.DataFrame({"a": PEOPLE, "b": GOODS, "time": TIMES})
    with pytest.raises(ConfigError, match=r"Set data\.table\.item_id to one of a, b"):
        find_columns(log, None, {}, take_default)


def test_a_question_that_nobody_answers_names_setting_and_option() -> None:
    question = Question("Which?", ["a", "b"], "a", "data.table.user_id")
    with pytest.raises(ConfigError, match=r"data\.table\.user_id='a'.*--yes"):
        refuse(question)
    assert take_default(question) == "a"


def test_weights_of_kinds() -> None:
    weights = propose_weights({"page_view": 9, "addtocart": 3, "transaction": 1, "refund": 1})
    assert weights == {"page_view": 1, "addtocart": 3, "transaction": 5, "refund": 0}
    assert propose_targets(weights) == ["transaction"]
