from __future__ import annotations

import pytest

from recgrit.data.sources.cleaning import clean_text, parse_price


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Crabtree &amp; Evelyn", "Crabtree & Evelyn"),
        ("a\tb\r\n c ", "a b c"),
        ('<span class="a-size-base">Soap</span>', "Soap"),
        ("&lt;b&gt;Soap&lt;/b&gt;", "Soap"),
        ('Soap <span class="a-size', "Soap"),
        ("Soap<script>var x = 1 < 2;</script> bar", "Soap bar"),
        ("<style>.a{}</style>", None),
        ("var aPageStart = (new Date()).getTime();", None),
        (".a-box { margin: 0 }", None),
        ("$(f); function () { go() }", None),
        ("Multi function (black)", "Multi function (black)"),
        ("I &lt;3 You", "I <3 You"),
        ("Shirt <M>", "Shirt <M>"),
        ("A\ud83d\ude00 smile", "A😀 smile"),
        ("half \ud83d one", "half \ufffd one"),
        ("  ", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_clean_text(text: object, expected: str | None) -> None:
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (5.04, 5.04),
        (5, 5.0),
        ("$1,299.00", 1299.0),
        (" 7.5 ", 7.5),
        ("$5.00 - $9.00", None),
        (".a-box-inner{color:red}", None),
        ("", None),
        (None, None),
        (True, None),
        (-1, None),
        (float("nan"), None),
    ],
)
def test_parse_price(price: object, expected: float | None) -> None:
    assert parse_price(price) == expected
