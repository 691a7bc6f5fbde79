"""Share of real tokens in rows packed to 8,192, beside padded pairs and first come, first packed; on a CPU.

Usage: python tools/bench/packing.py [--quick] [--json FILE] [--length TOKENS]

Examples of ../shared/data/v1g_real and drawn scenes, in random order as in training, read by one micro-batch:
each has last rows of its own that may be far from full. All rows are counted, the last ones too.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from examples import DATA
from rows import Row, print_rows, write_rows

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.example import Example
from v1lit.data.lengths.length import Length, measure
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.remaining import MicroBatchState, Remaining
from v1lit.data.sampling.rows import Substream, filled_rows
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder
from v1lit.data.synthetic import make_example

LENGTH = 8192
QWEN_MAX_PIXELS = 28 * 28 * 16384
"""Of the published checkpoints: photographs are seen as they are."""
SCENES = 3000
QUICK_EXAMPLES = 60
GOAL = 98.0


@dataclass(frozen=True)
class Case:
    """One set of examples, encoded for one image processor."""

    name: str
    real: bool
    max_pixels: int | None = None
    """None for the tiny processor's."""

    def processor(self) -> Processor:
        """That of a tiny Qwen2.5-VL."""
        tiny = {} if self.max_pixels is None else {"max_pixels": self.max_pixels}
        return load_processor(BackboneConfig("qwen2_5_vl", tiny=tiny))


CASES = (
    Case("v1g_real, images as Qwen2.5-VL sees them", real=True, max_pixels=QWEN_MAX_PIXELS),
    Case("v1g_real, tiny images", real=True),
    Case("drawn scenes", real=False),
)


def real(data: Path = DATA) -> Iterator[Example]:
    """All training examples of v1g_real, shuffled."""
    import pyarrow.parquet as pq

    from v1lit.data.formats.v1g import row_to_example

    rows = [row for file in sorted(data.glob("train-*.parquet")) for row in pq.read_table(file).to_pylist()]
    random.Random(0).shuffle(rows)
    yield from map(row_to_example, rows)


def drawn(count: int) -> Iterator[Example]:
    """Scenes of the synthetic source."""
    rng = random.Random(0)
    for number in range(count):
        yield make_example(rng, id=f"scene-{number}")


def share_packed(lengths: Sequence[Length], length: int) -> tuple[float, float, int]:
    """Percent of real tokens, seconds per example, and number of rows."""
    order = SourceOrder([len(lengths)], Shuffle(on=False))
    stream = Substream(GlobalSequence([order], [len(lengths)], 0), 0, Remaining(), 0, 1)
    start = time.perf_counter()
    rows = filled_rows(stream, MicroBatchState(), PackingConfig(length), lambda ref: lengths[ref.index])
    plans = list(rows)
    taken = time.perf_counter() - start
    real_tokens = sum(lengths[ref.index].tokens for plan in plans for ref in plan.refs)
    return 100 * real_tokens / (length * len(plans)), taken / len(lengths), len(plans)


def share_first_come(lengths: Sequence[int], length: int) -> float:
    """Percent of real tokens where a row is closed as soon as the next example does not fit."""
    rows, held = 1, 0
    for tokens in lengths:
        rows, held = (rows, held + tokens) if held + tokens <= length else (rows + 1, tokens)
    return 100 * sum(lengths) / (length * rows)


def share_padded(lengths: Sequence[int]) -> float:
    """Percent of real tokens in batches of two, padded to the longer."""
    computed = sum(2 * max(lengths[at : at + 2]) for at in range(0, len(lengths) - 1, 2))
    return 100 * sum(lengths[: len(lengths) // 2 * 2]) / computed


def rows_of(case: Case, length: int, limit: int | None) -> list[Row]:
    """The figures of one set; of its first `limit` examples."""
    title = f"Packing to {length:,}, {case.name}"
    if case.real and not DATA.is_dir():
        return [Row(f"{title}: real tokens", None, "%", "", goal=f">= {GOAL:g} %", note="v1g_real is absent")]
    source = islice(real() if case.real else drawn(SCENES), limit)
    processor, config = case.processor(), EncodingConfig(max_tokens=length)
    measured = [measure(example, processor, config) for example in source]
    lengths = [one.tokens for one in measured]
    share, seconds, rows = share_packed(measured, length)
    least = -(-sum(lengths) // length)
    best = 100 * sum(lengths) / (length * least)
    note = (
        f"{len(lengths):,} examples of {sum(lengths) / len(lengths):.0f} tokens (at most {max(lengths):,}) "
        f"in {rows:,} rows, {least:,} at least"
    )
    return [
        Row(
            f"{title}: real tokens", share, "%", "", best, share / best, f">= {GOAL:g} %", share >= GOAL, note
        ),
        Row(f"{title}: real tokens, first come, first packed", share_first_come(lengths, length), "%", ""),
        Row(f"{title}: real tokens, padded pairs instead", share_padded(lengths), "%", ""),
        Row(
            f"{title}: time per example",
            1e6 * seconds,
            "µs",
            "",
            note="in the main process",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="few examples: sees that everything runs")
    parser.add_argument("--length", type=int, default=LENGTH, metavar="TOKENS", help="of a row")
    given = parser.parse_args(arguments)
    command = "python tools/bench/packing.py" + (" --quick" if given.quick else "")
    command += f" --length {given.length}" if given.length != LENGTH else ""
    limit = QUICK_EXAMPLES if given.quick else None
    rows = [
        replace(row, command=command, met=None if given.quick else row.met)
        for case in CASES
        for row in rows_of(case, given.length, limit)
    ]
    print_rows(rows)
    if given.json:
        write_rows(given.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
