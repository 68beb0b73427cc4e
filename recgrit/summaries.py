"""Short printed form of objects: a title line and a few facts, one per line."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from html import escape


class Summarized:
    """Base class of objects that print as a short summary, and as a small table in a notebook."""

    @abstractmethod
    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """Return a title and facts by name, without loading large files."""

    def __repr__(self) -> str:
        title, facts = self.summarize()
        width = max(map(len, facts), default=0)
        return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in facts.items())])

    def _repr_html_(self) -> str:
        title, facts = self.summarize()
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in facts.items()
        )
        return f"<b>{escape(title)}</b><table>{rows}</table>"
