"""How much is read of what others wrote: bounds with a default, and a variable that moves each.

A file of some kilobytes can be made to fill the memory. Whoever has a file that is right and larger
sets the variable that the refusal names. Ranges of settings stand at the settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from recgrit.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """The most of something.

    Args:
        name: The variable of the environment is ``RECGRIT_MAX_`` and this.
        default: Where the variable is not set.
        unit: What is counted, in words that follow a number.
    """

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        """The variable of the environment that moves it."""
        return f"RECGRIT_MAX_{self.name}"

    def allowed(self, default: int | None = None) -> int:
        """The bound as it is now.

        Args:
            default: In place of the fixed one, where it depends on the case.

        Raises:
            ConfigError: The variable is no number.
        """
        setting = os.environ.get(self.variable)
        if setting is None:
            return self.default if default is None else default
        if not (setting.isascii() and setting.isdecimal() and len(setting) <= 18):
            raise ConfigError(
                f"{self.variable} of the environment is {setting[:40]!r}: expected the most "
                f"{self.unit} as a whole number of at most 18 digits, such as {self.default}."
            )
        return int(setting)

    def explain(self, found: int, *, default: int | None = None, is_least: bool = False) -> str:
        """What is said where there is more: the number found, the number allowed, what raises it.

        Args:
            found: How many there are.
            default: As for `allowed`.
            is_least: Whether there are more than that: counting stopped.
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
# Data unpack to some ten times their size: 100 times is allowed where that is more.
UNPACKED_BYTES = Bound("UNPACKED_BYTES", 2**28, "bytes after unpacking")
UNPACKED_RATIO = 100
# A value that comes again takes no byte in Parquet: 50 rows a byte are allowed where that is more.
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
