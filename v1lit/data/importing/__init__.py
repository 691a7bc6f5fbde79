"""How foreign rows become shards; what a row of each format means is in `v1lit.data.formats`."""
