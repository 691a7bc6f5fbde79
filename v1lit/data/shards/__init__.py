"""Shards: plain tar files in WebDataset layout, written reproducibly and read with suspicion.

    <folder>/shard-000000.tar                   members <key>.json, <key>.jpg (or <key>.0.jpg, <key>.1.png for
                                                several images), ...
    <folder>/shard-000000.index.safetensors     where each example lies, and its checksum
    <folder>/index.json                         what is in the folder, with checksums; written last

Any WebDataset reader opens them.
"""

from v1lit.data.shards.index import (
    INDEX_NAME,
    ShardInfo,
    ShardTable,
    list_shards,
    read_index,
    read_sidecar,
    shard_location,
    sidecar_location,
    sidecar_name,
    verify_shard,
    write_index,
)
from v1lit.data.shards.make_index import index_shards
from v1lit.data.shards.member import MAX_EXAMPLE_BYTES, MAX_IMAGE_BYTES, MAX_JSON_BYTES
from v1lit.data.shards.reader import Shard
from v1lit.data.shards.sidecar import MAX_SIDECAR_BYTES, ShardIndex, read_shard_index
from v1lit.data.shards.writer import ShardWriter

__all__ = [
    "INDEX_NAME",
    "MAX_EXAMPLE_BYTES",
    "MAX_IMAGE_BYTES",
    "MAX_JSON_BYTES",
    "MAX_SIDECAR_BYTES",
    "Shard",
    "ShardIndex",
    "ShardInfo",
    "ShardTable",
    "ShardWriter",
    "index_shards",
    "list_shards",
    "read_index",
    "read_shard_index",
    "read_sidecar",
    "shard_location",
    "sidecar_location",
    "sidecar_name",
    "verify_shard",
    "write_index",
]
