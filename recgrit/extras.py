"""What an import says where only the core is installed, and the import needs the whole pipeline."""

from __future__ import annotations

from importlib.abc import MetaPathFinder
from typing import Any

from recgrit.errors import MissingExtraError

# What works without the extras; the import contracts in pyproject.toml keep it so.
CORE = {
    "__main__",
    "bounds",
    "config",
    "distributed",
    "errors",
    "extras",
    "launch",
    "progress",
    "quantization",
    "text",
}

INSTALL = (
    "Install the extra that fits this machine, recgrit[cpu] or, with an NVIDIA GPU, recgrit[gpu]: "
    "pip install -e '.[cpu]' in a checkout. Without an extra there is recgrit.quantization alone."
)


class PipelineGuard(MetaPathFinder):
    """Refuses parts of recgrit that cannot work, in place of a failure deep inside them."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Find nothing itself.

        Raises:
            MissingExtraError: The module belongs to recgrit, but not to its core.
        """
        package, *parts = name.split(".")
        if package == "recgrit" and parts[0] not in CORE:
            raise MissingExtraError(
                f"{name} needs packages that are not installed, polars among them. {INSTALL}",
                name=name,
            )
