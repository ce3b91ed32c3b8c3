"""Plumbing that knows nothing of the method: options, checkpoints, run folders, precision, metrics."""
