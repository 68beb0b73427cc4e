"""recgrit: generative recommendation with GRIT-VQ semantic IDs.

The stages and their types live in the subpackages; nothing heavy is imported here, so that
``import recgrit`` stays instant.
"""

__version__ = "0.1.0"
