"""The training loop of all trained models: batches, optimizer, schedule, averages, checkpoints."""
