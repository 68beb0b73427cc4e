"""Checks of the names of members of a zip archive.

Members are read into memory and never unpacked to disk, so a name cannot overwrite a file. An
archive with names that lead out of its folder is refused all the same, because no publisher writes
such names.
"""

from __future__ import annotations

import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable

from recgrit.errors import DataError

# Errors that reading a damaged archive raises, found by fuzzing: offsets lead outside of the file,
# names are not text, sizes are negative, methods are unknown.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    OverflowError,
)
# Folder in which macOS stores metadata of each file.
_SHADOWS = "__MACOSX/"
_LEADS_ELSEWHERE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def members_by_name(names: Iterable[str], wanted: Iterable[str], label: str) -> dict[str, str]:
    """Return the full name of each member, by the last part of its path.

    Args:
        names: Full names of all members.
        wanted: Last parts of the names of the members that will be read.
        label: Name of the archive, for messages.

    Raises:
        DataError: A name leads out of the archive's folder, or a wanted file is in the archive
            twice.
    """
    found: dict[str, str] = {}
    asked_for = set(wanted)
    for name in names:
        if _LEADS_ELSEWHERE.search(name):
            raise DataError(
                f"{label} holds {name!r}, a path outside the archive, which no publisher "
                "writes. Use the archive as it was published."
            )
        last = re.split(r"[/\\]", name)[-1]
        if not last or name.startswith(_SHADOWS):
            continue
        if last in found and last in asked_for:
            raise DataError(
                f"{label} holds {last} twice, as {found[last]!r} and {name!r}. Use the archive as "
                "it was published, or unpack it and set data.path to the right folder."
            )
        found[last] = name
    return found
