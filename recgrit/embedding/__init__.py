"""From item features to one vector per item: text encoders, ready-made vectors, co-occurrence."""
