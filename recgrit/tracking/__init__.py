"""Experiment tracking: the `Tracker` protocol and its implementations."""
