"""Names and values as every MLflow server takes them.

MLflow refuses a whole batch for one bad name, and may do so at the end of a long run; so names are
mended here, before anything is sent.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from recgrit.errors import TrackingError

# The least that the supported releases of MLflow allow.
MAX_NAME_LENGTH = 250
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000

V = TypeVar("V")


def clean_name(name: str) -> str:
    """A name made of word characters, ``.``, ``-``, spaces and ``/`` between its parts.

    ``@`` becomes ``_at_``, any other character ``_``; what is too long ends in a digest, so that
    two long names do not become one.

    Raises:
        TrackingError: Nothing of the name is left.

    >>> clean_name("test/Recall@10")
    'test/Recall_at_10'
    """
    text = re.sub(r"[^\w./ \-]", "_", name.replace("@", "_at_"))
    # MLflow takes names for paths, and refuses those that are not in their shortest form.
    text = posixpath.normpath(text).strip("/.")
    if not text:
        raise TrackingError(f"Cannot log under the name {name!r}: use letters, digits, '_' or '/'.")
    if len(text) > MAX_NAME_LENGTH:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = f"{text[: MAX_NAME_LENGTH - 9]}-{digest}"
    return text


def name_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under clean names, with plain floats for values.

    Raises:
        TrackingError: Two names become the same.
    """
    return _rename((name, float(value)) for name, value in metrics.items())


def flatten_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Settings as text under clean, dotted names; text beyond MLflow's limit ends in ``...``.

    Raises:
        TrackingError: Two names become the same.

    >>> flatten_params({"retriever": {"epochs": 3, "betas": (0.9, 0.98)}, "seed": 7})
    {'retriever.epochs': '3', 'retriever.betas': '(0.9, 0.98)', 'seed': '7'}
    """
    return _rename((name, shorten(str(v), MAX_PARAM_LENGTH)) for name, v in _leaves(params, ""))


def hide_password(text: str) -> str:
    """URIs without their ``user:password@``, which must not end up in logs and reports.

    >>> hide_password("http://me:secret@host/path")
    'http://***@host/path'
    """
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def shorten(text: str, limit: int) -> str:
    """The text itself, or as much of it as fits with ``...`` behind."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        # An empty mapping is a setting too: it is kept as the text {}.
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
