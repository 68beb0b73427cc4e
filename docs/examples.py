"""Lets the reference show examples as code: griffe takes only `Examples` for doctests."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class ExampleSections(Extension):
    """Heads the docstrings' `Example` sections as griffe expects it."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Called for every object that was read."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
