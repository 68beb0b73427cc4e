"""Item vectors and item features, built from text, files, pictures and co-occurrence."""
