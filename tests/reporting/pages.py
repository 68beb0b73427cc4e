"""Read the content of a written page without a browser."""

from __future__ import annotations

import json
import re


def places_without_figure(page: str) -> set[str]:
    """Return the ids of figure elements without data. The tree does not count as a figure."""
    places = re.findall(r'<div class="plot" id="(\w+)"', page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    return set(places) - set(json.loads(data[1])["figures"]) - {"tree"}
