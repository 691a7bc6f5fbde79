"""Token lengths of the examples that fill rows: read from beside the index or the cache, or measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.encode.encoding import EncodingError
from v1lit.data.errors import BadDataError, ShardError
from v1lit.data.images import ImageError
from v1lit.data.lengths.length import LengthOptions
from v1lit.data.lengths.measuring import measure_lengths
from v1lit.data.lengths.table import LengthTable
from v1lit.data.reasons import in_words, most_frequent
from v1lit.data.remote import is_remote
from v1lit.data.shards.catalog import Catalog

MANY = 5_000
"""Examples for which it pays to start processes that measure them."""


def known_table(catalog: Catalog, options: LengthOptions) -> LengthTable | None:
    """The table of a source that is there already; None without one, or without an index."""
    if not catalog.indexed:
        return None
    for path in _places(catalog, options):
        if path.is_file():
            return LengthTable.load(path, options.fingerprint, catalog.examples)
    return None


def has_table(catalog: Catalog) -> bool:
    """Whether a table of these shards is there, whatever recipe it was measured for."""
    folders = [catalog.config.cache_folder / "lengths"]
    if not is_remote(catalog.location):
        folders.append(Path(catalog.location))
    return any(any(folder.glob(f"{_names(catalog)}-*.safetensors")) for folder in folders)


def measured_table(catalog: Catalog, options: LengthOptions) -> LengthTable | None:
    """The table of a source, measured and kept where there is none yet.

    It is measured in parallel, and resumed where an earlier attempt was stopped. None without an index, and
    for remote shards, which are not fetched for it: their lengths are measured while they are read, or by
    `v1lit data index --lengths`. Also None where a shard cannot be opened, whose examples will be skipped.
    """
    table, examples = known_table(catalog, options), catalog.examples
    if table is not None or examples is None or catalog.remote:
        return table
    rank_zero_info(f"measuring the lengths of {examples} examples in {catalog.location}, once")
    path, many = _places(catalog, options)[-1], examples >= MANY
    try:
        return _write(catalog, options, path, None if many else 1, progress=many)
    except ShardError as error:
        rank_zero_info(f"lengths are measured while examples are read: {error}")
        return None


def write_lengths(
    location: str | Path, options: LengthOptions, *, workers: int | None = None, progress: bool = False
) -> Path:
    """Measure the examples of an index and keep the table beside it, where training finds it.

    Returns its path. Raises ValueError for a location that is no local folder with an index and for a random
    map, ShardError for a shard that cannot be opened, and BadDataError, with the reasons, where not one
    example can be measured.
    """
    if options.map is not None and options.map.random:
        raise ValueError(
            f"data.map {options.map.name} is random, so an example has another length each time, and none "
            "is kept"
        )
    catalog = Catalog(location)
    path = table_beside(catalog, options)
    if path is None or not catalog.indexed:
        raise ValueError(
            f"{location} is no local folder with an index, so lengths cannot be kept beside it; make an "
            "index with `v1lit data index --out FOLDER`, and measure that folder"
        )
    table = _write(catalog, options, path, workers, progress)
    if not table.tokens.any():
        why = in_words(most_frequent(_reasons(catalog, options)))
        raise BadDataError(
            f"{location}: not one of {len(table)} examples can be used; of the first ones {why}"
        )
    return path


def _reasons(catalog: Catalog, options: LengthOptions) -> Iterator[str]:
    """Why the first examples cannot be measured: a table says only that they cannot."""
    with catalog.open(int(catalog.counts.argmax())) as shard:
        for index in range(min(len(shard), 100)):
            try:
                options.measure(shard.example(index), shard.name)
            except (ShardError, EncodingError, ImageError) as error:
                yield str(error)


def _write(
    catalog: Catalog, options: LengthOptions, path: Path, workers: int | None, progress: bool
) -> LengthTable:
    """Measure in one process of the machine at a time; the others then find its table."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if (table := known_table(catalog, options)) is not None:
            return table
        table = measure_lengths(catalog, options, workers=workers, progress=progress, partial=partial)
        table.save(path)
        shutil.rmtree(partial, ignore_errors=True)
    return table


def table_beside(catalog: Catalog, options: LengthOptions) -> Path | None:
    """Where the table of a local index lies; None for a remote one, or a source that is no folder."""
    if is_remote(catalog.location) or not Path(catalog.location).is_dir():
        return None
    return Path(catalog.location) / _name(catalog, options)


def _places(catalog: Catalog, options: LengthOptions) -> list[Path]:
    """Where a table may be, the place for a new one last."""
    beside = table_beside(catalog, options)
    cached = catalog.config.cache_folder / "lengths" / _name(catalog, options)
    return [cached] if beside is None else [beside, cached]


def _name(catalog: Catalog, options: LengthOptions) -> str:
    """Name of a table's file: another one where the shards, or what decides lengths, have changed."""
    return f"{_names(catalog)}-{options.fingerprint[:16]}.safetensors"


def _names(catalog: Catalog) -> str:
    """What the names of all tables of these shards begin with."""
    return f"lengths-{catalog.content[:16]}"
