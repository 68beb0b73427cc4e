"""Models to beat: the same data types in, the same `Recommendations` out."""
