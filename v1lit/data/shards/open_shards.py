"""Shards in use, of which a bounded number is open at a time."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from v1lit.data.errors import ShardError
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.reader import Shard

log = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 32
Key = TypeVar("Key")


class OpenShards(Generic[Key]):
    """Shards by key, opened when needed; of too many, the one not used for longest is closed.

    Args:
        open: opens the shard of a key.
    """

    def __init__(self, open: Callable[[Key], Shard]) -> None:
        self._open = open
        self._shards: OrderedDict[Key, Shard] = OrderedDict()

    def get(self, key: Key) -> Shard:
        """The shard of a key. Raises as `open`."""
        if key not in self._shards:
            self._shards[key] = self._open(key)
            if len(self._shards) > MAX_OPEN_SHARDS:
                self._shards.popitem(last=False)[1].close()
        self._shards.move_to_end(key)
        return self._shards[key]

    def close(self, key: Key) -> None:
        """Close the shard of a key, if it is open."""
        if key in self._shards:
            self._shards.pop(key).close()


class CatalogShards:
    """The open shards of several catalogs.

    A shard that could not be opened is not tried again in this process. A remote one that is damaged is
    fetched anew first, once.
    """

    def __init__(self, catalogs: list[Catalog]) -> None:
        self.catalogs = catalogs
        self._open = OpenShards[tuple[int, int]](lambda key: catalogs[key[0]].open(key[1]))
        self._broken: dict[tuple[int, int], ShardError] = {}
        self._renewed: set[tuple[int, int]] = set()

    def get(self, source: int, shard: int) -> Shard:
        """A shard of a source. Raises ShardError."""
        key = (source, shard)
        if key in self._broken:
            raise self._broken[key].with_traceback(None)  # which would grow with every time
        try:
            return self._open.get(key)
        except ShardError as error:
            if self.renew(source, shard, error):
                return self.get(source, shard)
            self._broken[key] = error
            raise

    def renew(self, source: int, shard: int, error: ShardError) -> bool:
        """After an error of a shard: whether it is worth another try, fetched anew. Raises CacheError."""
        key, catalog = (source, shard), self.catalogs[source]
        if key in self._renewed or not catalog.may_mend(shard, error):
            return False
        self._renewed.add(key)
        log.warning("%s; its copy in the cache may be damaged: fetching it again", error)
        self._open.close(key)
        catalog.discard(shard)
        return True
