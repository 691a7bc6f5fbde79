"""How long examples will be once encoded, known without decoding a pixel, and kept in a table.

Planning needs lengths before anything is read: which examples share a row, how many steps an epoch has.
`measure` writes an example exactly as `encode` does, with patch maps that come from the sizes in the image
headers. A `LengthTable` holds the lengths of a whole source; it belongs to one tokenizer, one set of image
options and one encoding, which its fingerprint names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import EncodingError
from v1lit.data.errors import ShardError
from v1lit.data.example import Example
from v1lit.data.example.images import ImageError
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.data.lengths.length import LEFT_OUT, MAX_IMAGES, measure
from v1lit.data.lengths.table import COLUMNS, LengthTable
from v1lit.data.shards import Shard
from v1lit.processes import count_workers, ordered, progress_bar

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor
    from v1lit.data.encode.mapping import ExampleMap
    from v1lit.data.shards import ShardIndex


Located = tuple["str | Path", "ShardIndex | None"]
"""Location and index of a shard."""
OpenShard = Callable[[str | Path, "ShardIndex | None"], Shard]


# --- fingerprint ---


# --- the table ---


def _joined(tables: Sequence[LengthTable], fingerprint: str) -> LengthTable:
    joined: dict[str, Any] = {
        name: np.concatenate([np.zeros(0, dtype), *(getattr(table, name) for table in tables)])
        for name, dtype in COLUMNS.items()
    }
    return LengthTable(**joined, fingerprint=fingerprint)


# --- measuring a source ---


def open_shard(location: str | Path, index: ShardIndex | None) -> Shard:
    """A local shard, with its index where there is one."""
    return Shard(location) if index is None else Shard(location, index=index)


def measure_shards(
    shards: Sequence[Located],
    processor: Processor,
    encoding: EncodingConfig,
    *,
    map: ExampleMap | None = None,
    workers: int | None = None,
    progress: bool = False,
    partial: str | Path | None = None,
    open_shard: OpenShard = open_shard,
) -> LengthTable:
    """Lengths of all examples of some shards, in this order.

    Args:
        shards: location and index of each; without an index a shard is scanned.
        map: changes examples before they are measured; it must not be random.
        workers: processes, each with one shard at a time; None for one per available core. They are spawned,
            which takes seconds: 1, for none beside this one, is faster for less than some thousand examples.
        progress: show a progress bar on stderr.
        partial: folder, made if missing, for the result of each shard: started again after it was stopped,
            the same call goes on from there. Delete it once the table is saved.
        open_shard: how to open a location, where that takes more than a local path; sent to the workers.

    Raises:
        ShardError: a shard that cannot be opened, or fetched; what was measured is kept in `partial`.
        WorkerDiedError: a worker was killed.
        ValueError: fewer than one worker.
    """
    job = _Job(shards, fingerprint(processor, encoding, map), None if partial is None else Path(partial))
    done = job.finished()
    todo = [number for number in range(len(shards)) if number not in done]
    count = count_workers(workers, len(todo))
    tasks = [shards[number] for number in todo]
    measured = ordered(_measure_shard, tasks, count, processor, encoding, open_shard, map)
    # Closed at once when Ctrl-C ends the loop, which stops the workers.
    with closing(measured), progress_bar("measuring lengths", len(todo), progress) as advance:
        for number, columns in zip(todo, measured, strict=True):
            done[number] = LengthTable(*columns, job.fingerprint)
            job.keep(number, done[number])
            advance(len(done[number]))
    return _joined([done[number] for number in range(len(shards))], job.fingerprint)


@dataclass(frozen=True)
class _Job:
    """What is measured, and where the results of single shards are kept."""

    shards: Sequence[Located]
    fingerprint: str
    partial: Path | None

    def finished(self) -> dict[int, LengthTable]:
        """The results of an earlier run that still hold, by number of the shard."""
        if self.partial is None:
            return {}
        self.partial.mkdir(parents=True, exist_ok=True)
        tables = {}
        for number in range(len(self.shards)):
            path = self._path(number, self.partial)
            if path.is_file():
                try:
                    table = LengthTable.load(path, self.fingerprint)
                except ValueError:
                    continue  # Measured again, and then replaced.
                tables[number] = _joined([table], self.fingerprint)  # A copy: not too many mapped files.
        return tables

    def keep(self, number: int, table: LengthTable) -> None:
        if self.partial is not None:
            table.save(self._path(number, self.partial))

    def _path(self, number: int, folder: Path) -> Path:
        """Named for the shard's location and content, so that a shard that was changed is measured again."""
        location, index = self.shards[number]
        digest = hashlib.sha256(str(location).encode())
        if index is not None:
            digest.update(index.offsets.tobytes() + index.crc32.tobytes())
        elif Path(location).is_file():
            status = Path(location).stat()
            digest.update(f"\n{status.st_size} {status.st_mtime_ns}".encode())
        return folder / f"{digest.hexdigest()[:32]}.safetensors"


Columns = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint16]]


def _measure_shard(
    shard: Located,
    processor: Processor,
    encoding: EncodingConfig,
    open_shard: OpenShard,
    map: ExampleMap | None,
) -> Columns:
    location, index = shard
    with open_shard(location, index) as opened:
        columns = [np.zeros(len(opened), dtype) for dtype in COLUMNS.values()]
        for number in range(len(opened)):
            try:
                example: Example | None = opened.example(number)
                if example is not None and map is not None:
                    example = map(example, opened.name)
                if example is None:
                    columns[0][number] = LEFT_OUT
                    continue
                length = measure(example, processor, encoding)
            except (EncodingError, ImageError):
                continue
            except ShardError as error:
                if error.kind == "unreachable":  # May well be there the next time.
                    raise
                continue
            if length.images <= MAX_IMAGES:
                for column, value in zip(columns, asdict(length).values(), strict=True):
                    column[number] = value
    return columns[0], columns[1], columns[2]
