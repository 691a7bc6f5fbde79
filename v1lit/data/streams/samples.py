"""The samples of one tar file, in their order: read by webdataset's reader, which decodes nothing here."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from v1lit.data.errors import DamageError, ShardError
from v1lit.data.example import Example, ExampleError
from v1lit.data.images import ImageError
from v1lit.data.remote import Retry
from v1lit.data.shards.member import size_limit
from v1lit.data.streams.members import MemberError, Members
from v1lit.data.streams.tar_bytes import TarBytes, name_of, open_tar


@dataclass(frozen=True)
class Sample:
    """The members of one example, as bytes."""

    shard: str
    key: str
    members: dict[str, bytes]
    problem: str | None = None
    """What the reader found wrong with it."""

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(map(len, self.members.values()))

    def example(self, mapping: Members | None) -> Example:
        """The example, as the mapping says, or as v1lit writes them. Raises ShardError."""
        if self.problem is not None:
            raise ShardError(self.shard, self.key, self.problem, "member")
        for kind, data in self.members.items():
            if len(data) > (limit := size_limit(kind.rpartition(".")[2])):
                reason = f"the member {kind!r} has {len(data)} bytes, the limit is {limit}"
                raise ShardError(self.shard, self.key, reason, "member")
        try:
            if mapping is None:
                return Example.from_members(self.key.rpartition("/")[2], self.members)
            return mapping.example(self.key, self.members)
        except ExampleError as error:
            cause = error.__cause__
            while cause is not None and not isinstance(cause, (ImageError, MemberError)):
                cause = cause.__cause__
            kind = "invalid" if cause is None else "image" if isinstance(cause, ImageError) else "member"
            raise ShardError(self.shard, self.key, error.reason, kind) from error


def read_samples(location: str, retry: Retry) -> Iterator[Sample | ShardError]:
    """All samples of a tar file. Damage is the last thing that is yielded: what follows it is lost.

    Raises ShardError of the kind "unreachable" where the file cannot be opened or fetched or has no bytes,
    and where the command that writes it fails.
    """
    shard, damage = name_of(location), None
    with open_tar(location, retry) as stream:
        if stream.empty:
            raise ShardError(shard, None, "gave no bytes at all", "unreachable")
        try:
            yield from _samples(shard, stream)
            stream.finish()
        except DamageError as problem:
            damage = problem
        except ShardError as error:
            kind, arguments = error.__reduce__()
            raise kind(*arguments) from error  # webdataset has appended to its text
        except OSError as error:
            raise ShardError(shard, None, f"cannot be read ({error.strerror})", "unreachable") from error
        except (tarfile.TarError, ValueError, EOFError, zlib.error) as error:
            damage = DamageError(f"damaged or cut off: {_said(error)}")
    # Told only now: a command that failed has raised instead.
    if damage is not None:
        yield ShardError(shard, None, f"{damage.reason}; the rest is left out", damage.kind)


def _samples(shard: str, stream: TarBytes) -> Iterator[Sample]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def another(name: str) -> bool:
        stream.begin_member()
        return True

    problems: list[str] = []

    def note(error: Exception) -> bool:
        """Read the rest of the sample without this member; it is then refused."""
        problems.append(str(error.args[0]).partition(" {")[0].partition(" dict_keys")[0])
        return True

    def files() -> Iterator[dict[str, Any]]:
        """The members up to damage, so that the sample before it is yielded; then it is raised."""
        try:
            yield from tar_file_expander([{"url": shard, "stream": stream}], select_files=another)
        except Exception as error:
            damage.append(error)

    damage: list[Exception] = []
    for group in group_by_keys(files(), handler=note):
        key = group["__key__"]
        members = {kind: data for kind, data in group.items() if not kind.startswith("__")}
        yield Sample(shard, key, members, problems[0] if problems else None)
        problems.clear()
    if damage:
        raise damage[0]


def _said(error: BaseException) -> str:
    """What an error says, without the stream and file that webdataset appends to it."""
    text = str(error.args[0]) if error.args else ""
    return " ".join(text.partition(" @ ")[0].split()) or type(error).__name__
