"""The bytes of one tar file as they come: from a disk, a network or a command, unpacked, within limits."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import cast

from v1lit.data.errors import DamageError, ShardError
from v1lit.data.remote import Retry, is_remote, remote_chunks, shown
from v1lit.data.shards import MAX_EXAMPLE_BYTES
from v1lit.data.streams.options import PIPE

BLOCK = 512
_CHUNK = 2**20
_GZIP = b"\x1f\x8b"
_PACKED = {_GZIP: "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@contextmanager
def open_tar(location: str, retry: Retry) -> Iterator[TarBytes]:
    """Open one file or command for reading from front to back. gzip is unpacked, told by its first bytes.

    Raises ShardError of the kind "unreachable" where it cannot be opened or fetched, or the command fails;
    also where that shows while the body of the `with` reads, whatever else goes wrong there.
    """
    if location.startswith(PIPE):
        with _command(location) as chunks:
            yield TarBytes(chunks)
    elif is_remote(location):
        yield TarBytes(remote_chunks(location, retry))
    else:
        try:
            file = open(location, "rb")  # noqa: SIM115
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            raise ShardError(location, None, reason, "unreachable") from error
        with file:
            yield TarBytes(iter(lambda: file.read(_CHUNK), b""))


def name_of(location: str) -> str:
    """What messages call a file or command, without passwords and signatures."""
    return location if location.startswith(PIPE) else shown(location)


class TarBytes(io.RawIOBase):
    """The bytes of a tar file, block by block, so that nobody reads further than they look.

    Between two calls of `begin_member` it reads no more bytes than an example may have.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        first = next(chunks, b"")
        self.empty = not first
        self._chunks: Iterator[bytes] = chain([first], chunks)
        if first.startswith(_GZIP):
            unpacked = gzip.GzipFile(fileobj=_ChunkStream(self._chunks))
            self._chunks = iter(lambda: unpacked.read(_CHUNK), b"")
        self._buffer, self._at = b"", 0
        self._block, self._blocks, self._since = b"", 0, 0

    def read(self, size: int = -1) -> bytes:
        """The next block, or what is left of it; nothing at the end. `size` is not looked at.

        Raises DamageError for more than the limit, a compression that is not unpacked here, and damaged gzip.
        """
        if len(self._buffer) - self._at < BLOCK:  # the pieces of a network end anywhere
            self._fill()
        block = self._buffer[self._at : self._at + BLOCK]
        self._at += len(block)
        self._blocks += 1
        self._since += len(block)
        self._block = block or self._block
        if self._blocks == 1:
            _refuse_packed(block)
        if self._since > MAX_EXAMPLE_BYTES:
            raise DamageError(f"a member, or its headers, of more than {MAX_EXAMPLE_BYTES} bytes", "member")
        return block

    def _fill(self) -> None:
        """Get more, until there is a whole block or the end."""
        kept = [self._buffer[self._at :]]
        have = len(kept[0])
        try:
            while have < BLOCK and (data := next(self._chunks, b"")):
                kept.append(data)
                have += len(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DamageError(f"damaged or cut off: {error}") from error
        self._buffer, self._at = b"".join(kept), 0

    def begin_member(self) -> None:
        """Say that the content of another member follows."""
        self._since = 0

    def finish(self) -> None:
        """Read what follows the end of the archive, as a command needs it to end well.

        Raises DamageError where the archive has no end, and where something follows it.
        """
        if any(self._block):
            raise DamageError("damaged or cut off: neither a tar header nor the end where one should be")
        while block := self.read():
            self.begin_member()
            if any(block):
                raise DamageError("more data follow the end of the tar file; of several, name each by itself")


def _refuse_packed(block: bytes) -> None:
    for begin, name in _PACKED.items():
        if block.startswith(begin):
            how = " twice" if begin == _GZIP else "; unpack it with a command: pipe:..."
            raise DamageError(f"is compressed with {name}{how}")


class _ChunkStream(io.RawIOBase):
    """Pieces of any size as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, b""

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = next(self._chunks, b"")
        size = len(self._left) if size < 0 else size
        data, self._left = self._left[:size], self._left[size:]
        return data


@contextmanager
def _command(location: str) -> Iterator[Iterator[bytes]]:
    """What a shell command of the recipe writes. It has failed where it ends with another code than 0.

    It runs in a session of its own: Ctrl-C is meant for the training, which still needs its data. Where
    nobody reads to its end, all of its processes are ended.
    """
    process = subprocess.Popen(
        location.removeprefix(PIPE),
        shell=True,
        stdout=subprocess.PIPE,
        bufsize=_CHUNK,
        start_new_session=True,
    )
    output, ended = cast(io.BufferedReader, process.stdout), False

    def chunks() -> Iterator[bytes]:
        nonlocal ended
        yield from iter(lambda: output.read1(_CHUNK), b"")
        ended = True

    def check() -> None:
        if ended and (code := process.wait()):
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise ShardError(location, None, f"the command {how}", "unreachable")

    with process:
        try:
            yield chunks()
        except Exception:
            check()
            raise
        else:
            check()
        finally:
            if not ended and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
