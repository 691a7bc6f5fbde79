"""Examples as tokens and images, and several of them as a batch."""
