"""What many processes on many machines need around the training: checks before it, and eyes on it."""
