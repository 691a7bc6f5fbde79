"""`measure_lengths`: the lengths of all examples of a catalog, measured by several processes at once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from v1lit.data.encode.encoding import EncodingError
from v1lit.data.errors import ShardError
from v1lit.data.images import ImageError
from v1lit.data.lengths.length import LEFT_OUT, MAX_IMAGES, LengthOptions
from v1lit.data.lengths.table import COLUMNS, LengthTable
from v1lit.data.shards.catalog import Catalog
from v1lit.processes import count_workers, ordered, progress_bar


def measure_lengths(
    catalog: Catalog,
    options: LengthOptions,
    *,
    workers: int | None = None,
    progress: bool = False,
    partial: Path | None = None,
) -> LengthTable:
    """Lengths of all examples of a catalog, in the order of its shards; no pixel is decoded.

    Args:
        catalog: the shards; one without an index is scanned.
        options: decide the lengths; their map must not be random.
        workers: processes, each with one shard at a time; None for one per available core. They are spawned,
            which takes seconds: for less than some thousand examples 1, this process alone, is faster.
        progress: show a progress bar on stderr.
        partial: folder, made if missing, for the table of each shard, from which the same call resumes after
            it was stopped. It must be used for this content of the catalog alone; delete it once the whole
            table is saved.

    Raises ShardError for a shard that cannot be opened or fetched (what was measured stays in `partial`),
    WorkerDiedError where a worker was killed, and ValueError for fewer than one worker.
    """
    tables = {} if partial is None else _load_partial(catalog, partial, options.fingerprint)
    missing = [shard for shard in range(len(catalog.files)) if shard not in tables]
    measured = ordered(_measure_shard, missing, count_workers(workers, len(missing)), catalog, options)
    # Closed at once when Ctrl-C ends the loop, which stops the workers.
    with closing(measured), progress_bar("measuring lengths", len(missing), progress) as advance:
        for shard, table in zip(missing, measured, strict=True):
            tables[shard] = table
            if partial is not None:
                table.save(_partial_file(partial, shard))
            advance(len(table))
    return LengthTable.join([tables[shard] for shard in range(len(catalog.files))], options.fingerprint)


def _partial_file(partial: Path, shard: int) -> Path:
    return partial / f"{shard:06d}.safetensors"


def _load_partial(catalog: Catalog, partial: Path, fingerprint: str) -> dict[int, LengthTable]:
    """The tables of single shards that an earlier call has left and that can be used, by shard index."""
    partial.mkdir(parents=True, exist_ok=True)
    tables = {}
    for shard, count in enumerate(catalog.counts.tolist()):
        try:
            table = LengthTable.load(_partial_file(partial, shard), fingerprint, None if count < 0 else count)
        except ValueError:
            continue  # Missing, or measured again and then replaced.
        tables[shard] = LengthTable.join([table], fingerprint)  # A copy: not too many mapped files.
    return tables


def _measure_shard(shard: int, catalog: Catalog, options: LengthOptions) -> LengthTable:
    with catalog.open(shard) as opened:
        columns: dict[str, Any] = {name: np.zeros(len(opened), dtype) for name, dtype in COLUMNS.items()}
        for index in range(len(opened)):
            try:
                length = options.measure(opened.example(index), opened.name)
            except (EncodingError, ImageError):
                continue
            except ShardError as error:
                if error.kind == "unreachable":  # May well be there the next time.
                    raise
                continue
            if length is None:
                columns["tokens"][index] = LEFT_OUT
            elif length.images <= MAX_IMAGES:
                for name, value in asdict(length).items():
                    columns[name][index] = value
    return LengthTable(**columns, fingerprint=options.fingerprint)
