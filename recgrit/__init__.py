"""recgrit: generative recommendation with GRIT-VQ semantic IDs.

The stages and their types live in the subpackages; nothing heavy is imported here, so that
``import recgrit`` stays instant. ``pip install recgrit`` brings what `recgrit.quantization` needs;
the extras ``cpu`` and ``gpu`` bring what all other packages need.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "fit"]

# Every part that needs an extra needs polars too.
if find_spec("polars") is None:
    from recgrit.extras import PipelineGuard

    sys.meta_path.insert(0, PipelineGuard())


def __getattr__(name: str) -> Any:
    """`recgrit.frames.fit`, which is heavy, when it is asked for."""
    if name == "fit":
        return import_module("recgrit.frames").fit
    raise AttributeError(f"module 'recgrit' has no attribute {name!r}")
