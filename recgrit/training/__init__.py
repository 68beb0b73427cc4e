"""One loop for all trained models: batches, optimizer, schedule, averaging, checkpoints."""
