"""Whether a recipe fits into the memory of given GPUs, and how long it would take; nothing is trained."""
