"""Recommendation models that are fitted, saved and loaded through one contract, `Model`."""
