"""Reader of numbers that are written as text, with a decimal point or a decimal comma."""

from __future__ import annotations

import polars as pl

from recgrit.errors import DataError

_COMMA = r"^-?\d+,\d+$"
_THOUSANDS = r"^-?[1-9]\d{0,2}(,\d{3})+$"
_GROUPED = r"^-?\d{1,3}([.' ]\d{3})*,\d+$"


def read_decimals(texts: pl.Series, mark: str | None, label: str, column: str) -> pl.Series:
    """Convert a column of texts to numbers; texts that are no numbers become null.

    Args:
        texts: Column of numbers as they are written in the file.
        mark: Decimal mark, a point or a comma. None detects it from the texts.
        label: Name of the file, for messages.
        column: Name of the column in the file, for messages.

    Raises:
        DataError: Each comma could be a decimal comma or a thousands separator, and no row settles
            which.
    """
    if texts.dtype != pl.String:
        return texts.cast(pl.Float64, strict=False)
    texts = texts.str.strip_chars()
    with_comma = texts.filter(texts.str.contains(",", literal=True))
    if mark is None:
        mark = "."
        if len(with_comma):
            thousands = with_comma.str.contains(_THOUSANDS)
            if with_comma.str.contains(_COMMA).all() and thousands.all():
                has_points = texts.str.contains(r"\d\.\d").any()
                if not has_points:
                    raise DataError(
                        f"{label}: numbers in {column}, such as {with_comma[0]!r}, have a comma "
                        "before decimals or between thousands. Set data.table.decimal=',' or "
                        "data.table.decimal=."
                    )
            elif with_comma.str.contains(_GROUPED).any() and not texts.str.contains(
                r",\d{3}\.\d"
            ).any():  # fmt: skip
                mark = ","
    if mark == ",":
        plain = texts.str.replace_all(r"[.' ]", "").str.replace(",", ".", literal=True)
        # A file with decimal commas may also hold decimal points, as in '4.5' beside '3,5'.
        is_point = texts.str.contains(r"^-?\d*\.\d{1,2}$")
        texts = plain.zip_with(~is_point.fill_null(False), texts)
    else:
        texts = texts.str.replace_all(",", "", literal=True)
    return texts.cast(pl.Float64, strict=False)
