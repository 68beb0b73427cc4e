"""Who does the work of a stage: this process, the processes torchrun started, or a Ray cluster."""
