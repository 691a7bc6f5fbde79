"""Tools on whole folders of shards: check them, write them again in another order or size."""
