"""Lists in, numbers out: ranking metrics with their uncertainty. No models and no torch here."""
