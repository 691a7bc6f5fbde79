"""Reading anywhere in a local file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from v1lit.data.errors import DamageError, ShardError


class RandomAccess:
    """A local file read at any offset, by several threads and after a fork: there is no position to share.

    `size` is how many bytes it had when it was opened. Usable as a context manager.

    Args:
        path: the file.
        name: what errors call it; the path if None.

    Raises ShardError where it cannot be opened.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        try:
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            reason = f"cannot be opened ({error.strerror})"
            raise ShardError(path if name is None else name, None, reason, "unreachable") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, fewer where the file ends.

        Raises DamageError where the disk or the file system reports an error.
        """
        size = min(size, self.size - offset)  # Never more memory than there can be bytes.
        data = b""
        try:
            while len(data) < size:
                more = os.pread(self._file.fileno(), size - len(data), offset + len(data))
                if not more:
                    break
                data = data + more if data else more
        except OSError as error:
            raise DamageError(f"cannot be read ({error.strerror})", "unreachable") from error
        return data

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RandomAccess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
