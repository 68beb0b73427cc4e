"""How objects print themselves: a line that says what they are, then a few facts, a line each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from html import escape


class Summarized:
    """Prints as a short summary, in a notebook as a small table."""

    @abstractmethod
    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """What it is, and facts by their names; loads nothing large."""

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
