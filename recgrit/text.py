"""What text is: what a UTF-8 file, a table and a page can all hold."""

from __future__ import annotations

import re


def is_text(value: str) -> bool:
    """Whether this can be written.

    JSON and YAML may spell half a surrogate pair, which is no character, and Python stands it for
    bytes of a file's name that are not UTF-8.
    """
    return not any("\ud800" <= character <= "\udfff" for character in value)


_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


def may_spell_half(content: bytes) -> bool:
    r"""Whether JSON may spell half a surrogate pair, which fast parsers change without a word.

    >>> may_spell_half(rb'["\ud800"]'), may_spell_half(rb'["\ud83d\ude00"]')
    (True, False)
    """
    return _HALF.search(content) is not None
