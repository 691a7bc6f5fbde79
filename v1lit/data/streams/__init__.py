"""The source `webdataset`: tar files that are read as they come, from front to back.

For what cannot be sought in, or is not ours: commands, compressed archives, servers without a local copy,
samples whose members have other names. The thinnest reader beside the plan (`data/plan/`): each shard belongs
to one reader, which mixes its examples in windows and makes rows of them with the functions of the plan.
"""
