"""recgrit inside other tools for recommendation; each needs that tool, an extra of its name."""
