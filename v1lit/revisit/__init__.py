"""Ways to look at the image again: how a region becomes tokens, and what stands at the input for it."""
