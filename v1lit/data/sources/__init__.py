"""Where examples come from: shards that exist, those that are made or imported, streams."""
