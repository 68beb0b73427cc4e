"""What a zip archive may call its members: names only, and each file once.

Members are read in memory and never unpacked to the disk, so a name could do no harm. Still, no
publisher writes names that lead out of the archive's folder: whoever made such an archive meant
something else than to publish data, and it is refused as a whole.
"""

from __future__ import annotations

import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable

from recgrit.errors import DataError

# What reading a damaged archive raises, as fuzzing found: offsets lead outside of the file, names
# are no text, sizes are negative, methods are unknown.
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
# What macOS adds beside each file.
_SHADOWS = "__MACOSX/"
_LEADS_ELSEWHERE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def members_by_name(names: Iterable[str], wanted: Iterable[str], label: str) -> dict[str, str]:
    """The full name of each member by its last part.

    Args:
        names: Of all members.
        wanted: Last parts of those that will be read.
        label: The archive, for messages.

    Raises:
        DataError: A name leads out of the archive's folder, or a wanted file is there twice.
    """
    found: dict[str, str] = {}
    asked_for = set(wanted)
    for name in names:
        if _LEADS_ELSEWHERE.search(name):
            raise DataError(
                f"{label} holds {name!r}, a name that leads out of the archive: that is no "
                "publisher's. Use the archive as it was published."
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
