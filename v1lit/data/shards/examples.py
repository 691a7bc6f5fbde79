"""`Examples`: the examples of several sources, read in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from v1lit.data.errors import ShardError
from v1lit.data.example.example import Example
from v1lit.data.example.reference import ExampleRef
from v1lit.data.shards.catalog import Catalog
from v1lit.data.shards.open_shards import CatalogShards

T = TypeVar("T")


class Examples(CatalogShards):
    """The examples of several sources, read in any order. Sent to other processes, it opens files there."""

    def read(self, ref: ExampleRef) -> Example:
        """One example. Raises ShardError."""
        return self.use(ref, lambda shard: shard.example(ref.index))

    def use(self, ref: ExampleRef, action: Callable[[OpenShard], T]) -> T:
        """Do something with the open shard of a place; once more where a new copy of it may help.

        Raises ShardError where the shard cannot be opened, or as the action raises.
        """
        shard = self.get(ref.source, ref.shard)
        try:
            return action(shard)
        except ShardError as error:
            if not self.renew(ref.source, ref.shard, error):
                raise
        return action(self.get(ref.source, ref.shard))

    def key(self, ref: ExampleRef) -> str | None:
        """Name of an example, as far as it can be read."""
        try:
            return self.get(ref.source, ref.shard).key(ref.index)
        except ShardError:
            return None

    def file(self, ref: ExampleRef) -> str:
        """Location of the shard that an example is in."""
        return self.catalogs[ref.source].files[ref.shard]

    def __reduce__(self) -> tuple[type[Examples], tuple[list[Catalog]]]:
        return type(self), (self.catalogs,)


class OpenShard(Protocol):
    """A shard as far as reading examples needs it."""

    @property
    def name(self) -> str: ...

    def example(self, index: int, /) -> Example:
        """One example. Raises ShardError."""


class Readable(Protocol):
    """Examples that can be read by their place."""

    def use(self, ref: ExampleRef, action: Callable[[OpenShard], T]) -> T:
        """Do something with the open shard of a place. Raises ShardError."""

    def key(self, ref: ExampleRef) -> str | None:
        """Name of an example, as far as it can be read."""

    def file(self, ref: ExampleRef) -> str:
        """Location of the shard that an example is in."""
