"""Proposal of a first configuration, for a user's own files or for a published data set."""
