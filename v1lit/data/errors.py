"""`ShardError`: what is wrong with a shard or with one example in it, and of which kind that is."""

from __future__ import annotations

from pathlib import Path

from v1lit.errors import FAILURE

KINDS = ("unreachable", "shard", "checksum", "member", "image", "invalid", "length", "slow")
"""Kinds of bad data.

unreachable: cannot be opened or fetched. shard: a damaged or cut-off tar file. checksum: other bytes than
the index says. member: missing, of an unknown kind, too large, or no plain file. image: not decodable, or too
many pixels. invalid: breaks a rule of `Example`. length: cannot be encoded. slow: took too long.
"""


class ShardError(ValueError):
    """A shard, or one example in it, that cannot be used; the text names both.

    Args:
        shard: path or URL of the shard.
        key: name of the example; None where the whole shard is unusable or the name cannot be read.
        reason: a sentence that says what is wrong.
        kind: one of `KINDS`.
    """

    exit_code = FAILURE
    """Bad data is no mistake in what was asked for."""

    def __init__(self, shard: str | Path, key: str | None, reason: str, kind: str = "shard") -> None:
        super().__init__(f"shard {shard}{f', example {key!r}' if key is not None else ''}: {reason}")
        self.shard, self.key, self.reason, self.kind = str(shard), key, reason, kind

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str | None, str, str]]:
        return type(self), (self.shard, self.key, self.reason, self.kind)


class DamageError(ValueError):
    """What is wrong, before the name of the shard is known: becomes a `ShardError` with these attributes."""

    def __init__(self, reason: str, kind: str = "shard", key: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.kind, self.key = reason, kind, key

    def in_shard(self, shard: str | Path) -> ShardError:
        """The same of a shard with a name."""
        return ShardError(shard, self.key, self.reason, self.kind)


class BadDataError(RuntimeError):
    """Too many examples could not be used; the message says how many, of which kinds, and where."""
