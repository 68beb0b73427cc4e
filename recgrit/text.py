"""Checks for text that cannot be written as UTF-8."""

from __future__ import annotations

import re


def is_text(value: str) -> bool:
    """Return whether a string contains only characters that can be written as UTF-8.

    Strings may contain halves of surrogate pairs, which are no characters. JSON and YAML can spell
    them, and Python uses them for bytes of file names that are not UTF-8.
    """
    return not any("\ud800" <= character <= "\udfff" for character in value)


_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


def may_spell_half(content: bytes) -> bool:
    r"""Return whether JSON bytes may escape half a surrogate pair, which is no character.

    The check is needed because fast parsers change such text silently.

    >>> may_spell_half(rb'["\ud800"]'), may_spell_half(rb'["\ud83d\ude00"]')
    (True, False)
    """
    return _HALF.search(content) is not None
