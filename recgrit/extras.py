"""The error for importing a part of recgrit that needs an extra that is not installed."""

from __future__ import annotations

from importlib.abc import MetaPathFinder
from typing import Any

from recgrit.errors import MissingExtraError

# Modules that work without the extras. The import contracts in pyproject.toml ensure this.
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
    "Install the extra that fits this machine, recgrit[cpu] or, with an NVIDIA GPU, "
    "recgrit[gpu]: pip install -e '.[cpu]' in a checkout. Without an extra, only "
    "recgrit.quantization works."
)


class PipelineGuard(MetaPathFinder):
    """An import hook that refuses modules of recgrit whose dependencies are not installed.

    Without it, the import would fail deep inside the module with a less helpful message.
    """

    def find_spec(self, name: str, *_: Any) -> None:
        """Return None, so that other finders load the module, unless the module has to be refused.

        Raises:
            MissingExtraError: The module belongs to recgrit, but not to its core.
        """
        package, *parts = name.split(".")
        if package == "recgrit" and parts[0] not in CORE:
            raise MissingExtraError(
                f"{name} needs packages that are not installed, such as polars. {INSTALL}",
                name=name,
            )
