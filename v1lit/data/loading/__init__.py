"""Batches from shards: the processes that read, the loaders, and what they keep of their progress."""
