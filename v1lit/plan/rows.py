"""How full the rows of a recipe's data are, by the tables of lengths beside its shards or in the cache.

Nothing is measured for it, and nothing comes over a network: rows are planned as training plans them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from v1lit.data.datamodule import V1DataModule
from v1lit.data.lengths.length import Length, LengthOptions
from v1lit.data.lengths.lookup import LengthLookup
from v1lit.data.lengths.store import has_table, known_table
from v1lit.data.loading.sequence import OpenedSequence
from v1lit.data.remote import is_remote
from v1lit.data.sampling.epoch import Progress, StepLayout, rank_rows
from v1lit.data.sampling.rows import MicroBatchPlan
from v1lit.training.flops import pairs_within

MOST_ROWS = 4096
"""Rows that are planned at most; the others of an epoch are taken to be like them."""
MOST_MICRO_BATCHES = 64
"""Micro-batches of a step whose rows are planned."""


class LengthsUnknown(ValueError):  # noqa: N818 - it names a state, like FileNotFound
    """The lengths of a recipe's examples are not at hand; the text says why."""


@dataclass(frozen=True)
class Rows:
    """The rows of an epoch: what one holds on average, empty ones of the last step included."""

    examples: float
    tokens: float
    """Without padding."""
    image_tokens: float
    pairs: float
    """Sum of the squared lengths of its examples."""
    near: float
    """The same, without pairs of tokens that are further apart than the decoder's window."""
    fill: float | None
    """Share of a row that its tokens fill; None where a row is as long as its examples."""
    of_epoch: int
    """Examples of an epoch."""
    steps: int
    """Optimizer steps of an epoch."""
    exact: bool
    """Whether the steps are counted, not reckoned from a part of the rows."""


def rows_of(data: V1DataModule, micro_batches: int, window: int | None = None) -> Rows:
    """The rows of the training data, of which a step takes `micro_batches`; window: the decoder's.

    Raises LengthsUnknown where the data or their lengths are not on this machine.
    """
    _refuse_absent(data)
    try:
        opened = data.opened
        for catalog in opened.catalogs:
            if not catalog.indexed or not has_table(catalog):
                raise LengthsUnknown(f"{catalog.location} has no table of lengths, see v1lit data index")
        options = LengthOptions(data.processor, data.encoding, data.map)
        tables = [known_table(catalog, options) for catalog in opened.catalogs]
        if None in tables:
            where = opened.catalogs[tables.index(None)].location
            raise LengthsUnknown(f"the table of lengths of {where} is of another recipe")
        return _plan(data, opened, LengthLookup(opened.examples, tables, options), micro_batches, window)
    except ValueError as error:  # of data, of a table, of a tokenizer that is not here
        raise LengthsUnknown(str(error).partition("\n")[0]) from error


def _refuse_absent(data: V1DataModule) -> None:
    """Raise LengthsUnknown where there can be no table, before anything is looked up over a network."""
    if data.streams is not None:
        raise LengthsUnknown("data.source is a stream")
    if data.map is not None and data.map.random:
        raise LengthsUnknown("data.map is random")
    locations = [source.shards for source in data.source.mixture] or [data.source.folder]
    for location in locations:
        if is_remote(location):
            raise LengthsUnknown(f"{location} is not on this machine")
    if not data.has_train:
        raise LengthsUnknown(f"{', '.join(locations)} holds no shards")


def _plan(
    data: V1DataModule, opened: OpenedSequence, lengths: LengthLookup, micro_batches: int, window: int | None
) -> Rows:
    apart = -(-micro_batches // MOST_MICRO_BATCHES)
    own = len(range(0, micro_batches, apart))
    progress = Progress(layout=StepLayout(micro_batches, str(data.grouping)))
    make_rows = data.grouping.make_rows(lengths)
    rows = rank_rows(opened.sequence, progress, make_rows, rank=0, ranks=apart)
    planned = list(islice(rows, own * max(1, MOST_ROWS // own)))
    exact = next(rows, None) is None and apart == 1
    every = [planned[at : at + own] for at in range(0, len(planned), own)]
    drop = data.stream.tail == "drop"
    steps = sum((all if drop else any)(bool(row.refs or row.refused) for row in step) for step in every)
    total = opened.sequence.examples
    read = sum(len(row.refs) + len(row.refused) + row.left_out for row in planned)
    known = [_lengths(row, lengths) for row in planned]
    if total is None or not any(known):
        raise LengthsUnknown("the training data have no example that could be used")
    if not exact:
        steps = max(1, round(total / (read * micro_batches / own) * len(every)))
    tokens = fmean(sum(length.tokens for length in row) for row in known)
    return Rows(
        examples=fmean(map(len, known)),
        tokens=tokens,
        image_tokens=fmean(sum(length.image_tokens for length in row) for row in known),
        pairs=fmean(sum(length.tokens**2 for length in row) for row in known),
        near=fmean(sum(pairs_within(length.tokens, window) for length in row) for row in known),
        fill=_fill(data, known, tokens),
        of_epoch=total,
        steps=steps,
        exact=exact,
    )


def _lengths(row: MicroBatchPlan, lengths: LengthLookup) -> list[Length]:
    return [length for ref in row.refs if (length := lengths(ref)) is not None]


def _fill(data: V1DataModule, rows: Sequence[Sequence[Length]], tokens: float) -> float | None:
    if data.packing.length is not None:
        return tokens / data.packing.length
    if data.flat:
        return None
    return tokens / fmean(len(row) * max((length.tokens for length in row), default=0) for row in rows)
