"""Which column is which, by names that people use and by what the columns hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from recgrit.data.id_columns import as_ids
from recgrit.errors import ConfigError, DataError
from recgrit.proposal.questions import Ask, Question

# Whole names, without marks and case, the likeliest first; then words that a name may hold.
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": (
        "userid", "user", "customerid", "customer", "visitorid", "visitor", "clientid", "client",
        "memberid", "member", "shopperid", "shopper", "buyerid", "buyer", "accountid", "account",
        "reviewerid", "personid", "deviceid", "uid", "cid", "useridx", "kunde", "kundennummer",
    ),
    "item_id": (
        "itemid", "item", "productid", "product", "articleid", "article", "sku", "skuid", "asin",
        "parentasin", "stockcode", "variantid", "goodsid", "movieid", "bookid", "trackid", "isbn",
        "ean", "gtin", "contentid", "offerid", "iid", "pid", "artikel", "artikelnummer",
    ),
    "timestamp": (
        "timestamp", "eventtime", "eventtimestamp", "time", "datetime", "date", "ts", "createdat",
        "occurredat", "eventdate", "orderdate", "purchasedate", "invoicedate", "unixreviewtime",
        "orderedat", "visittime", "at", "tdat", "zeit", "datum",
    ),
    "title": (
        "title", "name", "productname", "itemname", "producttitle", "itemtitle", "prodname",
        "articlename", "label", "headline", "titel", "bezeichnung", "artikelname",
    ),
    "weight": ("rating", "stars", "overall", "score"),
    "event": (
        "event", "eventtype", "eventname", "action", "actiontype", "behaviour", "behavior",
        "behaviortype", "activity", "activitytype", "interaction", "interactiontype", "type",
    ),
}  # fmt: skip
WORDS: dict[str, frozenset[str]] = {
    "user_id": frozenset({"user", "customer", "client", "visitor", "shopper", "member", "buyer"}),
    "item_id": frozenset({"item", "product", "article", "sku", "asin", "goods"}),
    "timestamp": frozenset({"time", "date", "timestamp", "datetime", "at"}),
    "title": frozenset({"title", "name"}),
}
# Of a visit, where nothing tells who it was.
VISITS = {"sessionid", "session", "visitid", "visit", "usersession"}
WHAT = {
    "user_id": "who interacted (a customer, a visitor)",
    "item_id": "what they interacted with (a product, an article)",
    "timestamp": "when it happened",
}
SAME_IDS, WHOLE_NAME, WORD, CONTENT = 10.0, 3.0, 2.0, 1.0
# Of ids in one column, how many stand in a column of the items, to be the same ids.
MEETING = 0.5
_DATE = r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|^\s*\d{1,2} \p{L}{3}|^\s*\p{L}{3,9} \d{1,2}"


@dataclass(frozen=True)
class Columns:
    """The columns of a log and of its item table.

    Args:
        user_id: Of the user.
        item_id: Of the item, in both.
        timestamp: Of the time.
        weight: Of the rating; None where there is none.
        title: Of the items' titles; None where there is none.
        event: Of the kinds of events; None where there is none.
    """

    user_id: str
    item_id: str
    timestamp: str
    weight: str | None
    title: str | None
    event: str | None


def find_columns(
    log: pl.DataFrame, items: pl.DataFrame | None, known: Mapping[str, str], ask: Ask
) -> Columns:
    """Which columns are meant.

    Args:
        log: Some rows of the log, with all columns.
        items: Rows of the item table; None where there is none.
        known: Names that are set.
        ask: Answers what is open.

    Raises:
        ConfigError: No column can be one that is needed, or the question stays open.
    """
    scores = {
        role: {name: _score(role, log[name]) for name in log.columns}
        for role in ("user_id", "item_id", "timestamp")
    }
    chosen = dict(known)
    if items is not None and "item_id" not in chosen:
        _add_meeting(scores["item_id"], log, items)
    for role in ("timestamp", "item_id", "user_id"):
        if role not in chosen:
            chosen[role] = _choose(role, scores[role], set(chosen.values()), ask)
    taken = {chosen[role] for role in scores}
    left = [name for name in log.columns if name not in taken]
    return Columns(
        user_id=chosen["user_id"],
        item_id=chosen["item_id"],
        timestamp=chosen["timestamp"],
        weight=chosen.get("weight") or _find_rating(log, left),
        title=chosen.get("title") or _find_title(items, chosen["item_id"]),
        event=_find_event(log, left),
    )


def score_name(role: str, name: str) -> float:
    """How much a name speaks for a role; 0 for not at all.

    >>> score_name("user_id", "CustomerID") > score_name("user_id", "user_segment") > 0
    True
    >>> score_name("user_id", "price")
    0.0
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain in NAMES[role]:
        return WHOLE_NAME + 0.5 * (plain == NAMES[role][0])
    if role == "user_id" and plain in VISITS:
        return CONTENT
    words = {
        word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    }  # As in customerId and order_date.
    return WORD if words & WORDS.get(role, frozenset()) else 0.0


def _score(role: str, column: pl.Series) -> float:
    """How much a column's name and content speak for a role; 0 where it cannot have it."""
    given = column.drop_nulls()
    if given.is_empty():
        return 0.0
    named = score_name(role, column.name)
    if role == "timestamp":
        if _holds_dates(given):
            return max(named, CONTENT)
        return named if _holds_numbers(given) else 0.0
    try:
        ids = as_ids(given, "", column.name)
    except DataError:
        # Damaged ids are refused when they are read: the name says that they are meant.
        return named if named >= WHOLE_NAME else 0.0
    return named if ids.n_unique() > 1 or len(ids) < 3 else 0.0


def _holds_dates(given: pl.Series) -> bool:
    """Whether most values are dates."""
    if given.dtype == pl.String:
        return int(given.str.contains(_DATE).sum()) > len(given) // 2
    return isinstance(given.dtype, pl.Datetime | pl.Date)


def _holds_numbers(given: pl.Series) -> bool:
    """Whether most values are numbers, as text too."""
    if given.dtype == pl.String:
        return int(given.str.contains(r"^\s*\d+([.,]\d+)?\s*$").sum()) > len(given) // 2
    return given.dtype.is_numeric()


def _add_meeting(scores: dict[str, float], log: pl.DataFrame, items: pl.DataFrame) -> None:
    """A column whose ids stand in the item table under the same name is the item's.

    Raises:
        ConfigError: They stand there under another name only.
    """

    def meets(left: str, right: str) -> bool:
        try:
            ids = as_ids(log[left], "", left).cast(pl.String).drop_nulls().unique()
            described = as_ids(items[right], "", right).cast(pl.String).drop_nulls()
        except DataError:
            return False
        if described.n_unique() < 0.9 * len(described):  # Ids of items stand there once.
            return False
        return len(ids) > 1 and ids.is_in(described.implode()).mean() >= MEETING  # type: ignore

    shared = [name for name in log.columns if name in items.columns and meets(name, name)]
    for name in shared:
        scores[name] += SAME_IDS
    if shared:
        return
    best = max(scores, key=lambda name: scores[name])
    others = [name for name in items.columns if name not in log.columns and meets(best, name)]
    if best not in items.columns and scores[best] > 0 and others:
        raise ConfigError(
            f"The items' ids stand in the column {best} of the log and in {others[0]} of the item "
            f"table: call the column {best} in both files."
        )


def _choose(role: str, scores: dict[str, float], taken: set[str], ask: Ask) -> str:
    """The column with the highest score; asked for where several have it or none has a name."""
    left = {name: score for name, score in scores.items() if name not in taken}
    best = max(left.values(), default=0.0)
    first = [name for name, score in left.items() if score == best]
    if best > 0 and len(first) == 1:
        return first[0]
    if best > 0:
        plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in first]
        order = [NAMES[role].index(p) if p in NAMES[role] else len(NAMES[role]) for p in plain]
        default = first[order.index(min(order))]
    elif left:
        first, default = list(left), None
    else:
        raise ConfigError(
            f"No column of the log is left that could tell {WHAT[role]}; it has "
            f"{', '.join(scores)}. Name it with data.table.{role}=COLUMN."
        )
    return ask(
        Question(f"Which column tells {WHAT[role]}?", sorted(first), default, f"data.table.{role}")
    )


def _find_rating(log: pl.DataFrame, left: list[str]) -> str | None:
    """A column that is called as a rating and holds few different numbers."""
    for name in left:
        if score_name("weight", name) >= WHOLE_NAME:
            numbers = log[name].cast(pl.Float64, strict=False).drop_nulls()
            if len(numbers) > log.height // 2 and numbers.n_unique() <= 100:
                return name
    return None


def _find_title(items: pl.DataFrame | None, item_id: str) -> str | None:
    """The column of text whose name speaks most for a title."""
    if items is None:
        return None
    scores = {
        name: score_name("title", name)
        for name in items.columns
        if name != item_id and items.schema[name] in (pl.String, pl.Categorical)
    }
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] > 0 else None


def _find_event(log: pl.DataFrame, left: list[str]) -> str | None:
    """The column with a few words that name kinds of events."""
    from recgrit.proposal.events import is_event

    for name in left:
        if log.schema[name] not in (pl.String, pl.Categorical):
            continue
        kinds = log[name].cast(pl.String).drop_nulls().unique()
        if not 1 < len(kinds) <= 30:
            continue
        known = sum(is_event(kind) for kind in kinds)
        if known >= (1 if score_name("event", name) >= WHOLE_NAME else (len(kinds) + 1) // 2):
            return name
    return None
