"""Upper bounds on the size of input that recgrit reads, each adjustable by an environment variable.

Bounds exist because a crafted file of some kilobytes can fill the memory. A refusal names the
variable that raises the bound. Ranges of settings are defined beside the settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from recgrit.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """An upper bound on the size of one kind of input.

    Args:
        name: End of the name of the environment variable, which starts with ``RECGRIT_MAX_``.
        default: Bound that holds if the variable is not set.
        unit: What is counted, as words that follow a number in messages.
    """

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        """Return the name of the environment variable that changes the bound."""
        return f"RECGRIT_MAX_{self.name}"

    def allowed(self, default: int | None = None) -> int:
        """Return the bound that holds now.

        Args:
            default: Bound to use if the variable is not set, for callers whose bound depends on the
                input. None uses the fixed default.

        Raises:
            ConfigError: The variable is not a whole number.
        """
        setting = os.environ.get(self.variable)
        if setting is None:
            return self.default if default is None else default
        if not (setting.isascii() and setting.isdecimal() and len(setting) <= 18):
            raise ConfigError(
                f"The environment variable {self.variable} is {setting[:40]!r}: expected the "
                f"largest allowed number of {self.unit}, a whole number of at most 18 digits, "
                f"such as {self.default}."
            )
        return int(setting)

    def explain(self, found: int, *, default: int | None = None, is_least: bool = False) -> str:
        """Return the message for input above the bound, which names the variable to raise it.

        Args:
            found: Number that was found.
            default: Bound to use if the variable is not set, as for `allowed`.
            is_least: Whether counting stopped at ``found``, so that the true number is larger.
        """
        more = "more than " if is_least else ""
        return (
            f"{more}{found:,} {self.unit}, and {self.allowed(default):,} are allowed. If that is "
            f"right, set {self.variable} to a larger number in the environment"
        )


CONFIG_BYTES = Bound("CONFIG_BYTES", 2**20, "bytes of a file of settings")
CONFIG_VALUES = Bound("CONFIG_VALUES", 10_000, "values in a file of settings, aliases resolved")
MANIFEST_BYTES = Bound("MANIFEST_BYTES", 2**26, "bytes of a manifest")
LINE_BYTES = Bound("LINE_BYTES", 2**26, "bytes in one line")
JSON_BYTES = Bound("JSON_BYTES", 2**31, "bytes of JSON, which is held in memory as a whole")
# Compressed data usually unpack to about ten times their size. If this ratio times the packed size
# is larger than UNPACKED_BYTES, it is the bound.
UNPACKED_BYTES = Bound("UNPACKED_BYTES", 2**28, "bytes after unpacking")
UNPACKED_RATIO = 100
# A repeated value takes almost no space in Parquet. If this many rows per byte of the file are more
# than PARQUET_ROWS, they are the bound.
PARQUET_ROWS = Bound("PARQUET_ROWS", 10_000_000, "rows of one Parquet file")
PARQUET_ROWS_PER_BYTE = 50
EVENT_TYPES = Bound("EVENT_TYPES", 64, "types of events")
LISTED_ITEMS = Bound("LISTED_ITEMS", 2_000_000, "items of all lists of one request")

BOUNDS = (
    CONFIG_BYTES,
    CONFIG_VALUES,
    MANIFEST_BYTES,
    LINE_BYTES,
    JSON_BYTES,
    UNPACKED_BYTES,
    PARQUET_ROWS,
    EVENT_TYPES,
    LISTED_ITEMS,
)
