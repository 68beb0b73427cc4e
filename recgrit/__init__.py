"""recgrit: generative recommendation with GRIT-VQ semantic IDs.

The stages and their types live in the subpackages; nothing heavy is imported here, so that
``import recgrit`` stays instant. ``pip install recgrit`` brings what `recgrit.quantization` needs;
the extras ``cpu`` and ``gpu`` bring what all other packages need.
"""

import sys
from importlib.util import find_spec

__version__ = "0.1.0"

# Every part that needs an extra needs polars too.
if find_spec("polars") is None:
    from recgrit.extras import PipelineGuard

    sys.meta_path.insert(0, PipelineGuard())
