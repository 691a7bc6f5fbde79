"""Writing checkpoint folders in the background, while the run trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from v1lit.files import put_in_place, remove
from v1lit.parallel.checkpoint_folder import CheckpointFolder
from v1lit.parallel.shard_files import (
    Staged,
    clear,
    stage,
    state_bytes,
    write_complete,
    write_part,
)

Gather = Callable[[Any], list[Any]]
"""What every rank has, in their order, on all of them; waits for them."""


class FolderWriter:
    """Writes a run's checkpoint folders, one at a time, each rank its part.

    `begin` copies what is to be written to the CPU and returns; a thread writes it to the disk. The folder
    gets its name in `settle`, which all ranks call together when none of them is `busy` any longer, and
    which `begin` calls for the one before. Nothing is exchanged between ranks in the background.

    Args:
        rank: this one.
        gather: how ranks tell each other something.
    """

    def __init__(self, rank: int, gather: Gather) -> None:
        self.rank = rank
        self.gather = gather
        self._pending: tuple[Path, Path] | None = None
        self._thread: threading.Thread | None = None
        self._size = 0
        self._error: str | None = None
        self._checked = False

    @property
    def pending(self) -> bool:
        """Whether a folder has not got its name yet; the same on all ranks."""
        return self._pending is not None

    @property
    def busy(self) -> bool:
        """Whether this rank still writes."""
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], own: bool = False
    ) -> None:
        """Copy the tensors, and start to write a checkpoint of this name; to be called on all ranks.

        Args:
            path: of the checkpoint; an older one of that name stays until this one is complete.
            tensors: plain ones, the same on all ranks, or DTensors, of which each rank writes its part.
            state: everything else, that of rank 0 counts: what `torch.load` reads without running code.
            own: no other rank was given these tensors, which are plain, on the CPU, and do not change.

        Raises what `settle` raises, for this checkpoint or the one before.
        """
        self.settle()
        hidden = self._prepare(path)
        self._pending, self._error, self._size = (hidden, path), None, 0
        try:
            staged = stage(tensors, self.rank, own)
            content = state_bytes(state) if self.rank == 0 else None
        except Exception as error:  # told to all ranks when they settle
            self._error = _told(error)
            return
        self._thread = threading.Thread(
            target=self._write, args=(hidden, staged, content), name=f"write {path.name}", daemon=True
        )
        self._thread.start()

    def settle(self) -> None:
        """Wait until all ranks have written, and give the folder its name; to be called on all ranks.

        Raises OSError, on all ranks, where one of them could not write; what was there before stays.
        """
        if self._pending is None:
            return
        if self._thread is not None:
            self._thread.join()
        (hidden, path), self._pending, self._thread = self._pending, None, None
        written = self.gather((self._size, self._error))
        problems = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(written) if error is not None]
        if not problems and self.rank == 0:
            problems = self._finish(hidden, path, [size for size, _ in written])
        problems = self.gather(problems)[0]
        if problems:
            raise OSError(f"the checkpoint {path} could not be written; {problems[0]}")

    def _prepare(self, path: Path) -> Path:
        """The folder to write to, made by rank 0 for all."""
        made: Path | str | None = None
        if self.rank == 0:
            try:
                made = clear(path)
                made.mkdir()
            except OSError as error:
                made = _told(error)
        made = self.gather(made)[0]
        if not isinstance(made, Path):
            raise OSError(f"the checkpoint {path} could not be written; rank 0: {made}")
        return made

    def _write(self, folder: Path, staged: Staged, state: bytes | None) -> None:
        try:
            folder.mkdir(exist_ok=True)  # where the file system is not shared: found out when all settle
            self._size = write_part(folder, self.rank, staged, state)
        except Exception as error:  # told to all ranks when they settle
            self._error = _told(error)

    def _finish(self, hidden: Path, path: Path, sizes: list[int]) -> list[str]:
        try:
            write_complete(hidden, sizes)
            if not self._checked:  # how tensors lie over ranks does not change in a run
                CheckpointFolder(hidden).check()
                self._checked = True
            put_in_place(hidden, path)
        except (OSError, ValueError) as error:
            remove(hidden)
            return [f"rank 0: {_told(error)}"]
        return []


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
