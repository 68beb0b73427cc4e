"""What every benchmark ends with: its results, one a line, and as JSON where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping


def print_results(found: Mapping[str, object], *, as_json: bool) -> None:
    """Print one line a result and, with ``as_json``, a last line that is one JSON object."""
    for key, value in found.items():
        print(f"{key}: {value:,.4g}" if isinstance(value, float) else f"{key}: {value}")
    if as_json:
        print(json.dumps(found))
