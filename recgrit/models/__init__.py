"""Models: each is built, trained, saved and loaded by one contract, and gives a `Ranker`."""
