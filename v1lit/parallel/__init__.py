"""A model over many devices: where it is cut, how weights reach their shards, and how they are written."""
