"""The source `webdataset`: tar files that are read as they come, from front to back.

For what cannot be sought in, or is not ours: commands, compressed archives, servers without a local copy,
samples whose members have other names. It is the thinnest reader beside the plan (`data/sampling/`): each
file belongs to one reader, which mixes its examples in windows and makes rows of them as the plan does.
"""
