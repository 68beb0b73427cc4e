from __future__ import annotations

import pytest

from recgrit.data.categories import AMAZON_CATEGORIES
from recgrit.data.sources import SOURCES, load_source
from recgrit.data.sources.amazon import Amazon
from recgrit.errors import ConfigError


def test_every_registered_name_loads() -> None:
    assert [load_source(name) for name in SOURCES] == list(SOURCES.values())


def test_family_takes_its_category_from_the_name() -> None:
    assert load_source("amazon2014/Sports_and_Outdoors") == Amazon(2014, "Sports_and_Outdoors")


@pytest.mark.parametrize(
    "name",
    [
        "movielens",
        "amazon2014",
        "amazon2014/",
        "amazon2015/Beauty",
        "recbole/x",
        "",
    ],
)
def test_unknown_names_list_the_known(name: str) -> None:
    known = r"movielens-100k, .*, recbole, sequences, table, amazon2014/<Category>"
    with pytest.raises(ConfigError, match=f"Unknown data source '{name}'.*{known}"):
        load_source(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("amazon2018/Gift_cards", r" Did you mean data\.source=amazon2018/Gift_Cards\?"),
        (
            "amazon2023/Sports_outdoors",
            r" Did you mean data\.source=amazon2023/Sports_and_Outdoors\?",
        ),
        ("amazon2014/Gift_Cards", r".* There are: .*Beauty"),
        ("amazon2014/../x", " There are: Amazon_Instant_Video"),
    ],
)
def test_unknown_categories_name_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"has no category '[^']+'.{hint}"):
        load_source(name)


def test_every_category_loads() -> None:
    for family, categories in AMAZON_CATEGORIES.items():
        assert len(set(categories)) == len(categories) > 20
        for category in categories:
            assert category in load_source(f"{family}/{category}").expected
