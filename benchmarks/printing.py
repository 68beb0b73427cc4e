"""Print the results of a benchmark, as lines and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping


def print_results(found: Mapping[str, object], *, as_json: bool) -> None:
    """Print one line per result and, with ``as_json``, one JSON object as the last line."""
    for key, value in found.items():
        print(f"{key}: {value:,.4g}" if isinstance(value, float) else f"{key}: {value}")
    if as_json:
        print(json.dumps(found))
