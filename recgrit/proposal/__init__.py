"""A first configuration for data that somebody brings, or for a published data set."""
