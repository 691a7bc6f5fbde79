"""How long examples are once they are encoded: measured once, and kept in tables beside the shards."""
