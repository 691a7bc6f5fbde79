"""Digits that stand for the content of a run's shards, to compare between ranks; no shard is read for it."""

from __future__ import annotations

from v1lit.data.datamodule import V1DataModule
from v1lit.errors import one_line


def shard_digits(data: V1DataModule) -> dict[str, str]:
    """Digits by what they are of; where shards cannot be read, the reason instead."""
    found = {}
    try:
        if data.streams is not None:
            found["the stream of training files"] = data.streams.train.names
        else:
            found |= {f"the content of {one.location}": one.content[:16] for one in data.opened.catalogs}
        if data.val_content is not None:
            found["the content of the validation shards"] = data.val_content
    except (ValueError, OSError) as error:
        found["the shards"] = f"not readable ({one_line(error)})"
    return found


def there_from_the_start(data: V1DataModule) -> bool:
    """Whether nothing has to be drawn or imported before the shards can be looked at."""
    return data.source.name == "shards" or data.streams is not None
