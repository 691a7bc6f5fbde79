"""Token lengths of the examples that fill rows: found beside the index, in the cache, or measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import EncodingError
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.errors import BadDataError, ShardError
from v1lit.data.example.images import ImageError
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.data.lengths.length import measure_mapped
from v1lit.data.lengths.measuring import measure_lengths
from v1lit.data.lengths.table import LengthTable
from v1lit.data.reasons import in_words, most_frequent
from v1lit.data.remote import is_remote
from v1lit.data.shards.catalog import Catalog

MANY = 5_000
"""Examples for which it pays to start processes that measure them."""


def known_table(
    catalog: Catalog, processor: Processor, encoding: EncodingConfig, map: ExampleMap | None = None
) -> LengthTable | None:
    """The table of a source that is there already; None without one, or without an index."""
    if not catalog.indexed:
        return None
    mark = fingerprint(processor, encoding, map)
    for path in _places(catalog, mark):
        if path.is_file():
            return LengthTable.load(path, mark, catalog.examples)
    return None


def measured_table(
    catalog: Catalog,
    processor: Processor,
    encoding: EncodingConfig,
    map: ExampleMap | None = None,
    workers: int | None = None,
) -> LengthTable | None:
    """The table of a source, measured and kept where there is none yet; in parallel, and going on where an
    earlier attempt was stopped.

    None without an index, and for remote shards, which are not fetched for it: their lengths are measured
    while they are read, or by `v1lit data index --lengths`. Also None where a shard cannot be opened, whose
    examples will be skipped.
    """
    table, examples = known_table(catalog, processor, encoding, map), catalog.examples
    if table is not None or examples is None or catalog.remote:
        return table
    rank_zero_info(f"measuring the lengths of {examples} examples in {catalog.location}, once")
    path = _places(catalog, fingerprint(processor, encoding, map))[-1]
    many = examples >= MANY
    try:
        return _write(catalog, processor, encoding, map, path, workers if many else 1, progress=many)
    except ShardError as error:
        rank_zero_info(f"lengths are measured while examples are read: {error}")
        return None


def write_lengths(
    location: str | Path,
    processor: Processor,
    encoding: EncodingConfig,
    map: ExampleMap | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Measure the examples of an index and keep the table beside it, where training finds it; gives its path.

    Raises ValueError for a location that is no local folder with an index and for a random map, ShardError
    for a shard that cannot be opened, and BadDataError, with the reasons, where not one example can be
    measured.
    """
    if map is not None and map.random:
        raise ValueError(
            f"data.map {map.name} is random, so an example has another length each time, and none is kept"
        )
    catalog = Catalog(location)
    path = table_beside(catalog, fingerprint(processor, encoding, map))
    if path is None or not catalog.indexed:
        raise ValueError(
            f"{location} is no local folder with an index, so lengths cannot be kept beside it; make an "
            "index with `v1lit data index --out FOLDER`, and measure that folder"
        )
    table = _write(catalog, processor, encoding, map, path, workers, progress)
    if not table.tokens.any():
        why = in_words(most_frequent(_reasons(catalog, processor, encoding, map)))
        raise BadDataError(
            f"{location}: not one of {len(table)} examples can be used; of the first ones {why}"
        )
    return path


def _reasons(
    catalog: Catalog, processor: Processor, encoding: EncodingConfig, map: ExampleMap | None
) -> Iterator[str]:
    """Why the first examples cannot be measured: a table says only that they cannot."""
    with catalog.open(int(catalog.counts.argmax())) as shard:
        for number in range(min(len(shard), 100)):
            try:
                measure_mapped(shard.example(number), shard.name, processor, encoding, map)
            except (ShardError, EncodingError, ImageError) as error:
                yield str(error)


def _write(
    catalog: Catalog,
    processor: Processor,
    encoding: EncodingConfig,
    map: ExampleMap | None,
    path: Path,
    workers: int | None,
    progress: bool,
) -> LengthTable:
    """One process at a time measures; what it has made the others then find."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if (table := known_table(catalog, processor, encoding, map)) is not None:
            return table
        table = measure_lengths(
            catalog, processor, encoding, map=map, workers=workers, progress=progress, partial=partial
        )
        table.save(path)
        shutil.rmtree(partial, ignore_errors=True)
    return table


def table_beside(catalog: Catalog, mark: str) -> Path | None:
    """Where the table of a local index lies; None for a remote one, or a source that is no folder."""
    if is_remote(catalog.location) or not Path(catalog.location).is_dir():
        return None
    return Path(catalog.location) / _name(catalog, mark)


def _places(catalog: Catalog, mark: str) -> list[Path]:
    """Where a table may be, the place for a new one last."""
    beside = table_beside(catalog, mark)
    cached = catalog.config.cache_folder / "lengths" / _name(catalog, mark)
    return [cached] if beside is None else [beside, cached]


def _name(catalog: Catalog, mark: str) -> str:
    """Of a table's file: another one where the shards, or what decides lengths, have changed."""
    return f"lengths-{catalog.content[:16]}-{mark[:16]}.safetensors"
