"""Names and values in the form that every MLflow server accepts.

One bad name makes MLflow refuse a whole batch, possibly at the end of a long run. Names are
therefore corrected before anything is sent.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from recgrit.errors import TrackingError

# Largest lengths in characters that all supported releases of MLflow allow.
MAX_NAME_LENGTH = 250
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000

V = TypeVar("V")


def clean_name(name: str) -> str:
    """Return a name of word characters, ``.``, ``-``, spaces, and ``/`` between its parts.

    ``@`` becomes ``_at_``, and any other character becomes ``_``. A name that is too long is cut
    and ends in a digest, so that two long names stay different.

    Args:
        name: Name of a metric, setting or tag.

    Raises:
        TrackingError: Nothing is left, as of a name of dots and slashes alone.

    Example:
        >>> clean_name("test/Recall@10")
        'test/Recall_at_10'
    """
    text = re.sub(r"[^\w./ \-]", "_", name.replace("@", "_at_"))
    # MLflow reads names as paths, and refuses paths that are not in their shortest form.
    text = posixpath.normpath(text).strip("/.")
    if not text:
        raise TrackingError(f"Cannot log under the name {name!r}: use letters, digits, '_' or '/'.")
    if len(text) > MAX_NAME_LENGTH:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = f"{text[: MAX_NAME_LENGTH - 9]}-{digest}"
    return text


def name_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under clean names, with their values as floats.

    Args:
        metrics: Values of metrics by name.

    Raises:
        TrackingError: Two metrics get the same name.
    """
    return _rename((name, float(value)) for name, value in metrics.items())


def flatten_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as one level of texts, with names whose parts are joined by dots.

    The names are cleaned by `clean_name`. Text that is longer than MLflow allows is cut and ends in
    ``...``.

    Args:
        params: Values of settings by name; mappings may be nested.

    Raises:
        TrackingError: Two settings get the same name.

    Example:
        >>> flatten_params({"retriever": {"epochs": 3, "betas": (0.9, 0.98)}, "seed": 7})
        {'retriever.epochs': '3', 'retriever.betas': '(0.9, 0.98)', 'seed': '7'}
    """
    return _rename((name, shorten(str(v), MAX_PARAM_LENGTH)) for name, v in _leaves(params, ""))


def hide_password(text: str) -> str:
    """Replace the ``user:password`` of all URIs in a text by ``***``.

    Passwords must not appear in logs and reports.

    Example:
        >>> hide_password("http://me:secret@host/path")
        'http://***@host/path'
    """
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def shorten(text: str, limit: int) -> str:
    """Return a text unchanged, or cut to ``limit`` characters with ``...`` at the end."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        # An empty mapping is a setting too. It is recorded as the text {}.
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _rename(values: Iterator[tuple[str, V]]) -> dict[str, V]:
    original: dict[str, str] = {}
    renamed: dict[str, V] = {}
    for name, value in values:
        clean = clean_name(name)
        if clean in renamed:
            raise TrackingError(
                f"{original[clean]!r} and {name!r} would both be logged as {clean!r}: rename one."
            )
        original[clean] = name
        renamed[clean] = value
    return renamed
