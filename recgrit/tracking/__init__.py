"""Where runs are recorded: a small `Tracker` protocol and its implementations."""
