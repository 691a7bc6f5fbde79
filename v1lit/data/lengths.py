"""How long examples will be once encoded, known without decoding a pixel, and kept in a table.

Planning needs lengths before anything is read: which examples share a row, how many steps an epoch has.
`measure` writes an example exactly as `encode` does, with patch maps that come from the sizes in the image
headers. A `LengthTable` holds the lengths of a whole source; it belongs to one tokenizer, one set of image
options and one encoding, which its fingerprint names.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v1lit.data.config import EncodingConfig
from v1lit.data.encoding import EncodingError, see, write
from v1lit.data.example import Example
from v1lit.data.images import ImageError
from v1lit.data.pool import count_workers, ordered
from v1lit.data.progress import progress_bar
from v1lit.data.shards import Shard, ShardError

if TYPE_CHECKING:
    from v1lit.backbones.processor import Processor
    from v1lit.data.mapping import ExampleMap
    from v1lit.data.shards import ShardIndex

VERSION = 2
"""Of what decides lengths here and in `encoding` and the backbones' patch maps: raise it when a length may
come out differently, and every table is measured again."""

COLUMNS = {"tokens": "<u4", "image_tokens": "<u4", "images": "<u2"}
"""Columns of a table and their types in numpy's words."""
_METADATA = "v1lit_lengths"
_IN_FILE = {"<u4": "U32", "<u2": "U16"}
"""The same in those of safetensors."""
MAX_IMAGES = 2**16 - 1
LEFT_OUT = 2**32 - 1
"""In the column `tokens`: of an example that the map leaves out."""

Located = tuple["str | Path", "ShardIndex | None"]
"""Location and index of a shard."""
OpenShard = Callable[[str | Path, "ShardIndex | None"], Shard]


@dataclass(frozen=True)
class Length:
    """What an example takes of a batch: tokens (pointers and image tokens included), image tokens, images."""

    tokens: int
    image_tokens: int
    images: int


def measure(example: Example, processor: Processor, encoding: EncodingConfig) -> Length:
    """Length of what `encode` makes of an example, exactly; its images are not decoded.

    Raises EncodingError where `encode` does. Damage in the pixels of an image is not seen here.
    """
    patch_maps = see(example, processor)
    written = write(example, patch_maps, processor, encoding)
    # What is cut never holds an image: one that does not fit is an EncodingError.
    return Length(written.kept, sum(map(len, patch_maps)), len(patch_maps))


# --- fingerprint ---


def fingerprint(processor: Processor, encoding: EncodingConfig, map: ExampleMap | None = None) -> str:
    """32 hexadecimal digits that change whenever the length of some example could.

    They depend on the content of tokenizer, image options, chat format, encoding and the map's file alone:
    the same in every process and on every machine.
    """
    backbone = processor.backbone
    content = {
        "version": VERSION,
        "backbone": backbone.name,
        "chat": asdict(backbone.chat),
        "image": processor.image_options,
        "views": processor.views,
        "encoding": asdict(encoding),
        "tokenizer": _tokenizer_content(processor.tokenizer),
        **({} if map is None else {"map": map.identity}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """All that decides which ids a text gets, as plain JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content: dict[str, Any] = json.loads(backend.to_str())
        # State that calls leave behind; texts are encoded with neither.
        return {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    # A tokenizer in Python: its class, its flags and the files of its vocabulary.
    with TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}
    flags = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, bool | int)}
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return {"class": type(tokenizer).__name__, "files": files, "flags": flags, "added": added}


# --- the table ---


@dataclass(frozen=True, eq=False)
class LengthTable:
    """Lengths of the examples of one source, in place order: its shards as listed, each from its beginning.

    A loaded table is mapped from its file, not read into memory: the processes of one machine share one copy,
    and memory is taken only for the parts that are used. Pickled (as for a spawned worker) it is the path,
    which the other process maps again; a table that was never saved is pickled whole.

    Attributes:
        tokens: uint32 [examples]; 0 for an example that cannot be read or encoded, `LEFT_OUT` for one that
            the map leaves out.
        image_tokens: uint32 [examples].
        images: uint16 [examples].
        fingerprint: of the processor and encoding that it was measured with.
    """

    tokens: npt.NDArray[np.uint32]
    image_tokens: npt.NDArray[np.uint32]
    images: npt.NDArray[np.uint16]
    fingerprint: str
    _file: tuple[Path, int] | None = field(default=None, repr=False)
    """Path and CRC-32 of a mapped table."""

    def __len__(self) -> int:
        return len(self.tokens)

    def save(self, path: str | Path) -> None:
        """Write the table as safetensors, aside and then renamed. Raises OSError where it cannot."""
        from safetensors.numpy import save_file

        path = Path(path)
        about = {
            "fingerprint": self.fingerprint,
            "examples": len(self),
            "crc32": _crc32(self._columns()),
        }
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            # One entry: the order of several would change from run to run.
            save_file(self._columns(), aside, {_METADATA: json.dumps(about)})
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, fingerprint: str, examples: int | None = None) -> LengthTable:
        """Map a saved table; its data are read through once, to check them.

        Raises:
            ValueError: naming the file: it is missing or damaged, was measured with another tokenizer or
                other options (another fingerprint), or is not about this many `examples`.
        """
        table = cls._map(Path(path))
        if table.fingerprint != fingerprint:
            raise ValueError(
                f"{path} holds lengths for another tokenizer or other image or encoding options (fingerprint "
                f"{table.fingerprint}, needed {fingerprint}): measure them again"
            )
        if examples is not None and len(table) != examples:
            raise ValueError(
                f"{path} holds the lengths of {len(table)} examples, but the source has {examples}: measure "
                "them again"
            )
        if table._file is None or _crc32(table._columns()) != table._file[1]:
            raise ValueError(f"{path} is damaged (wrong checksum): delete it and measure the lengths again")
        return table

    @classmethod
    def _map(cls, path: Path) -> LengthTable:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as opened:  # Checks that header and file fit each other.
                about = json.loads(opened.metadata()[_METADATA])
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
            examples = about["examples"]
            columns = {}
            for name, dtype in COLUMNS.items():
                where = header[name]
                if where["shape"] != [examples] or where["dtype"] != _IN_FILE[dtype]:
                    raise ValueError(f"{name} has {where['dtype']} {where['shape']}")
                first = start + where["data_offsets"][0]
                columns[name] = np.frombuffer(data, dtype, examples, first)
            return cls(**columns, fingerprint=about["fingerprint"], _file=(path.absolute(), about["crc32"]))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{path} is not a usable table of lengths ({type(error).__name__}: {error}): delete it and "
                "measure the lengths again"
            ) from error

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in COLUMNS.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file is None:
            return type(self), (self.tokens, self.image_tokens, self.images, self.fingerprint)
        return _map_again, (*self._file, self.fingerprint)


def _map_again(path: Path, crc32: int, fingerprint: str) -> LengthTable:
    table = LengthTable._map(path)
    if table._file != (path, crc32) or table.fingerprint != fingerprint:
        raise ValueError(f"{path} was replaced by another table while it was in use: start again")
    return table


def _crc32(columns: dict[str, npt.NDArray[Any]]) -> int:
    crc = 0
    for column in columns.values():
        crc = zlib.crc32(column.data, crc)
    return crc


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
