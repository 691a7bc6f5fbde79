"""Whether a recipe fits into the memory of a cluster, how long it takes, and what to change."""
