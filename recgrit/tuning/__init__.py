"""Tuning of a run's settings: trials with different settings, compared on validation only."""
