"""Foreign formats of data, one file each, and their names."""
