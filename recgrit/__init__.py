"""recgrit: generative recommendation with GRIT-VQ semantic IDs.

The stages and their types are in the subpackages. This module imports no large library, so that
``import recgrit`` stays fast. ``pip install recgrit`` installs what `recgrit.quantization` needs.
The extras ``cpu`` and ``gpu`` install what all other packages need.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "fit"]

# Every part of recgrit that needs an extra also needs polars, so a missing polars means that no
# extra is installed.
if find_spec("polars") is None:
    from recgrit.extras import PipelineGuard

    sys.meta_path.insert(0, PipelineGuard())


def __getattr__(name: str) -> Any:
    """Return `recgrit.fit`, importing it on first use.

    The module `recgrit.frames` loads large libraries, so ``import recgrit`` alone does not import
    it.
    """
    if name == "fit":
        return import_module("recgrit.frames").fit
    raise AttributeError(f"module 'recgrit' has no attribute {name!r}")
