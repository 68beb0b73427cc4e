import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.embedding.text import build_item_texts
from recgrit.errors import ConfigError


def table(**columns):
    num_items = len(next(iter(columns.values())))
    ids = [f"i{row}" for row in range(num_items)]
    return ItemTable(pl.DataFrame({"item_id": ids, "title": ids} | columns))


def test_default_template_takes_what_the_table_has():
    items = table(
        title=["Heat", "Toy Story"],
        genres=[["Crime", "Drama"], ["Animation"]],
        year=[1995, None],
        brand=[None, "Pixar"],
    )
    assert build_item_texts(items) == [
        "Heat. Genres: Crime, Drama. Year: 1995.",
        "Toy Story. Brand: Pixar. Genres: Animation.",
    ]


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_segments_without_a_value_vanish_as_a_whole(nothing):
    items = table(title=["Soap"], brand=[nothing])
    assert build_item_texts(items, "{title} (by {brand})") == ["Soap"]
    assert build_item_texts(items, "Brand: {brand}. {title}") == ["Soap"]


def test_empty_lists_vanish():
    items = table(title=["a", "b"], categories=pl.Series([[], [None]], dtype=pl.List(pl.String)))
    assert build_item_texts(items) == ["a.", "b."]


def test_nested_categories_are_flattened_without_repeats():
    items = table(
        title=["Brush", "Comb"],
        categories=[[["Beauty", "Hair"], ["Beauty", "Tools"]], [["Beauty"]]],
    )
    assert build_item_texts(items, "{title}: {categories}") == [
        "Brush: Beauty, Hair, Tools",
        "Comb: Beauty",
    ]


def test_an_item_without_any_text_has_its_id():
    items = table(brand=[None, "Dove"])
    assert build_item_texts(items) == ["i0", "Brand: Dove."]


def test_prices_become_ranges():
    items = table(title=list("abcdefgh"), price=[0.5, 1.0, 9.99, 10, 2e6, 0.0, float("nan"), None])
    assert build_item_texts(items, "{price}") == [
        "under $1",
        "$1 to $2",
        "$5 to $10",
        "$10 to $20",
        "$500000 or more",
        "i5",
        "i6",
        "i7",
    ]


def test_a_text_does_not_depend_on_the_other_items():
    whole = table(title=["a", "b", "c"], price=[3.0, 40.0, 900.0])
    part = ItemTable(whole.frame.tail(1))
    assert build_item_texts(part) == build_item_texts(whole)[2:]


def test_whole_years_stored_as_floats_have_no_fraction():
    items = table(title=["a", "b"], year=[1995.0, None])
    assert build_item_texts(items) == ["a. Year: 1995.", "b."]


def test_an_explicit_template_with_unknown_fields_lists_the_known():
    items = table(title=["a"], brand=["b"])
    with pytest.raises(ConfigError, match=r"\['colour'\].*Known fields: item_id, title, brand"):
        build_item_texts(items, "{title} {colour}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{title", "Cannot read"),
        ("{title!r}", r"write \{title\} alone"),
        ("{title:>9}", r"write \{title\} alone"),
        ("nothing", "names no field"),
        ("{}", r"does not have: \[''\]"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        build_item_texts(table(title=["a"]), template)


def test_the_table_is_left_alone():
    items = table(title=["a"], price=[1.5])
    before = items.frame.clone()
    build_item_texts(items)
    assert items.frame.equals(before)
