"""Tuning: trials of a run's settings, chosen by validation alone."""
