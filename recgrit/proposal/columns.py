"""Detection of the user, item, time and other columns, by their names and by their content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from recgrit.data.id_columns import as_ids
from recgrit.errors import ConfigError, DataError
from recgrit.proposal.questions import Ask, Question

# Names of columns by role, in lower case and without punctuation, most likely name first.
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
# Words by role that may be part of a column's name.
WORDS: dict[str, frozenset[str]] = {
    "user_id": frozenset({"user", "customer", "client", "visitor", "shopper", "member", "buyer"}),
    "item_id": frozenset({"item", "product", "article", "sku", "asin", "goods"}),
    "timestamp": frozenset({"time", "date", "timestamp", "datetime", "at"}),
    "title": frozenset({"title", "name"}),
}
# Names of columns of visits, which are used as users if there is no column of users.
VISITS = {"sessionid", "session", "visitid", "visit", "usersession"}
WHAT = {
    "user_id": "who interacted (a customer, a visitor)",
    "item_id": "what they interacted with (a product, an article)",
    "timestamp": "when it happened",
}
SAME_IDS, WHOLE_NAME, WORD, CONTENT, NAME_ALONE = 10.0, 3.0, 2.0, 1.0, 0.5
MAX_EVENT_TYPES = 30
# Least share of the ids of a log's column that a column of the item table must have, so that both
# count as the same ids.
MEETING = 0.5
_DATE = (
    r"^\s*\d{8}T\d{4}|^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
    r"|^\s*\d{1,2} \p{L}{3}|^\s*\p{L}{3,9} \d{1,2}"
)


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a log and of its item table.

    Args:
        user_id: Column of the user in the log.
        item_id: Column of the item in the log.
        items_id: Column of the item in the item table. None if it has the same name as in the log.
        timestamp: Column of the time in the log.
        weight: Column of the rating in the log. None if there is none.
        title: Column of the title in the item table. None if there is none.
        event: Column of the event type in the log. None if there is none.
    """

    user_id: str
    item_id: str
    items_id: str | None
    timestamp: str
    weight: str | None
    title: str | None
    event: str | None


def find_columns(
    log: pl.DataFrame, items: pl.DataFrame | None, known: Mapping[str, str], ask: Ask
) -> Columns:
    """Find the columns of a log and of its item table.

    Args:
        log: Some rows of the log, with all columns.
        items: Rows of the item table. None if there is no item table.
        known: Column names that the user has set, by role, such as ``user_id``.
        ask: Function that answers questions if several columns, or none, fit a role.

    Raises:
        ConfigError: No column can have a required role, or a question has no answer.
    """
    scores = {
        role: {name: _score(role, log[name]) for name in log.columns}
        for role in ("user_id", "item_id", "timestamp")
    }
    chosen = dict(known)
    meeting = {} if items is None else _find_meeting(log, items, chosen.get("items_id"))
    if "item_id" not in chosen:
        _prefer_meeting(scores, meeting)
    for role in ("timestamp", "item_id", "user_id"):
        if role not in chosen:
            chosen[role] = _choose(role, scores[role], set(chosen.values()), ask)
    if items is not None and "items_id" not in chosen:
        chosen["items_id"] = _choose_items_id(chosen["item_id"], meeting, items, ask)
    items_id = chosen.get("items_id", chosen["item_id"])
    taken = {chosen[role] for role in scores}
    left = [name for name in log.columns if name not in taken]
    return Columns(
        user_id=chosen["user_id"],
        item_id=chosen["item_id"],
        items_id=None if items_id == chosen["item_id"] else items_id,
        timestamp=chosen["timestamp"],
        weight=chosen.get("weight") or _find_rating(log, left),
        title=chosen.get("title") or _find_title(items, items_id),
        event=chosen.get("event") or _find_event(log, left),
    )


def score_name(role: str, name: str) -> float:
    """Return how well a column's name fits a role; 0 if it does not fit.

    Args:
        role: Role of a column, such as ``user_id``, ``item_id`` or ``timestamp``.
        name: Name of the column.

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
    }  # The words of names such as customerId and order_date.
    return WORD if words & WORDS.get(role, frozenset()) else 0.0


def _score(role: str, column: pl.Series) -> float:
    """Return how well a column's name and content fit a role; 0 if it cannot have the role."""
    given = column.drop_nulls()
    if given.is_empty():
        return 0.0
    named = score_name(role, column.name)
    if role == "timestamp":
        return _score_times(given, named)
    try:
        ids = as_ids(given, "", column.name)
    except DataError:
        # The name says that these ids are meant. Damaged ids raise an error when they are read.
        return named if named >= WHOLE_NAME else 0.0
    if ids.n_unique() > 1 or len(ids) < 3:
        return named
    # All rows have the same id. It may be a single user, if no other column has a name that fits.
    return named - 1 if named >= WHOLE_NAME else 0.0


def _score_times(given: pl.Series, named: float) -> float:
    if _holds_dates(given):
        return max(named, CONTENT)
    if _holds_numbers(given):
        return named
    # If no other column can be the time, this one is read, and the error says what is wrong.
    return NAME_ALONE if named >= WHOLE_NAME else 0.0


def _holds_dates(given: pl.Series) -> bool:
    """Return whether most values of a column are dates."""
    if isinstance(given.dtype, pl.Categorical | pl.Enum):
        given = given.cast(pl.String)
    if given.dtype == pl.String:
        return int(given.str.contains(_DATE).sum()) > len(given) // 2
    return isinstance(given.dtype, pl.Datetime | pl.Date)


def _holds_numbers(given: pl.Series) -> bool:
    """Return whether most values of a column are numbers, or texts of numbers."""
    if given.dtype == pl.String:
        return int(given.str.contains(r"^\s*\d+([.,]\d+)?\s*$").sum()) > len(given) // 2
    return given.dtype.is_numeric()


def _find_meeting(
    log: pl.DataFrame, items: pl.DataFrame, items_id: str | None
) -> dict[str, list[str]]:
    """Find columns of the item table that have the same ids as columns of the log.

    Args:
        log: Rows of the log.
        items: Rows of the item table.
        items_id: The only column of the item table to compare with. None compares with all columns.

    Returns:
        For columns of the log with at least two different ids, the columns of the item table that
        have at least half of these ids. A column with the same name comes first. Only columns of
        the item table with few repeated ids count. Columns of the log without a match are left out.
    """
    wanted = items.columns if items_id is None else [items_id]
    described = {name: ids for name in wanted if (ids := _read_ids(items, name)) is not None}
    # A column of item ids has each id about once.
    keys = {n: ids for n, ids in described.items() if ids.n_unique() >= 0.9 * len(ids)}
    meeting: dict[str, list[str]] = {}
    for name in log.columns:
        ids = _read_ids(log, name)
        if ids is None or (ids := ids.unique()).len() < 2:
            continue
        shares = {key: float(ids.is_in(keys[key].implode()).mean() or 0) for key in keys}  # type: ignore[arg-type]
        met = [key for key, share in shares.items() if share >= MEETING]
        if met:
            meeting[name] = sorted(met, key=lambda key: (key != name, -shares[key]))
    return meeting


def _read_ids(frame: pl.DataFrame, name: str) -> pl.Series | None:
    """Return a column as ids in text form; None if it cannot hold ids."""
    try:
        return as_ids(frame[name], "", name).cast(pl.String).drop_nulls().str.strip_chars()
    except DataError:
        return None


def _prefer_meeting(
    scores: Mapping[str, dict[str, float]], meeting: Mapping[str, Sequence[str]]
) -> None:
    """Give a bonus in the role of the item to columns of the log whose ids are in the item table.

    Columns with the same name in both tables get the bonus. If there are none, columns whose name
    fits an item get it. If there are none of these either, and exactly one column's name fits
    neither a user nor a time, this column gets it. The names matter because user ids may be the
    same numbers as item ids.
    """
    of_items = scores["item_id"]
    alike = [name for name, others in meeting.items() if others[0] == name]
    named = [name for name in meeting if of_items[name] > 0]
    free = [
        name
        for name in meeting
        if not any(scores[role][name] >= WORD for role in ("user_id", "timestamp"))
    ]
    for name in alike or named or (free if len(free) == 1 else []):
        of_items[name] += SAME_IDS


def _choose_items_id(
    item_id: str, meeting: Mapping[str, Sequence[str]], items: pl.DataFrame, ask: Ask
) -> str:
    """Return the column of the item table whose ids are the log's ids in the column ``item_id``.

    The column is chosen by its content, or else by its name. If neither settles it, the user is
    asked. If it is chosen by name and its ids do not match, an error is raised when all rows are
    read.
    """
    options = list(meeting.get(item_id, ()))
    if options[:1] == [item_id] or (not options and item_id in items.columns):
        return item_id
    options = options or list(items.columns)
    scores = {name: score_name("item_id", name) for name in options}
    best = [name for name in options if scores[name] == max(scores.values())]
    if len(best) == 1 and (scores[best[0]] > 0 or len(options) == 1):
        return best[0]
    text = f"Which column of the items has the ids that the log has in {item_id}?"
    return ask(Question(text, options, None, "data.table.items_id"))


def _choose(role: str, scores: dict[str, float], taken: set[str], ask: Ask) -> str:
    """Return the column that fits a role best.

    The user is asked if several columns fit equally well, or if no column fits.

    Args:
        role: Role to find a column for.
        scores: How well each column fits the role, by column name.
        taken: Columns that have another role already.
        ask: Function that answers questions.

    Raises:
        ConfigError: All columns have another role, or the question has no answer.
    """
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
            f"No column of the log is left that says {WHAT[role]}; the log has "
            f"{', '.join(scores)}. Name the column with data.table.{role}=COLUMN."
        )
    return ask(
        Question(f"Which column says {WHAT[role]}?", sorted(first), default, f"data.table.{role}")
    )


def _find_rating(log: pl.DataFrame, left: list[str]) -> str | None:
    """Return a column that is named like a rating and has at most 100 different numbers, or None.

    More than half of the rows must have a number in this column.
    """
    for name in left:
        if score_name("weight", name) >= WHOLE_NAME:
            numbers = log[name].cast(pl.Float64, strict=False).drop_nulls()
            if len(numbers) > log.height // 2 and numbers.n_unique() <= 100:
                return name
    return None


def _find_title(items: pl.DataFrame | None, item_id: str) -> str | None:
    """Return the text column of the item table whose name fits a title best, or None."""
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
    """Return the column of event types; None if there is none.

    The column has 2 to 30 different texts or whole numbers. In addition, at least half of them are
    names of event types, or the column is named like event types. The name ``type`` may mean
    anything, and so may more than 10 different whole numbers. In these two cases the name counts
    only if at least one value is the name of an event type.
    """
    from recgrit.proposal.events import is_event

    for name in left:
        is_text = log.schema[name] in (pl.String, pl.Categorical)
        if not is_text and not log.schema[name].is_integer():
            continue
        types = log[name].cast(pl.String).drop_nulls().str.strip_chars().unique()
        types = types.filter(types != "")
        if not 1 < len(types) <= MAX_EVENT_TYPES:
            continue
        num_known = sum(is_event(one) for one in types)
        is_called = score_name("event", name) >= WHOLE_NAME
        is_vague = name.lower() == "type" or (not is_text and log[name].n_unique() > 10)
        if num_known >= (len(types) + 1) // 2 or (is_called and (num_known or not is_vague)):
            return name
    return None
