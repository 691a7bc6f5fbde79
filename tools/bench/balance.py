"""How much more than the mean the rank with most work has to do, beside plans that do not care; on a CPU.

Usage: python tools/bench/balance.py [--quick] [--json FILE]

Ranks of a sharded model meet in every layer, and those of any other at every step: the largest over the mean,
1 at best, is by how much the others wait. Examples of ../shared/data/v1g_real and drawn scenes of many sizes,
in random order, planned for 8 and 64 ranks that accumulate 4 rows of 8,192 tokens. The work of an image token
is that of a text token and, in the vision tower, 0.39 of it more: four patches through 0.63 billion weights,
beside the 6.5 billion of the language layers of Qwen2.5-VL-7B.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from examples import DATA
from packing import QWEN_MAX_PIXELS, Case, real
from rows import Row, print_rows, write_rows

from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.example import Example, ExampleRef
from v1lit.data.lengths.length import Length, measure
from v1lit.data.loading.step import heaviest_first
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.remaining import MicroBatchState, Remaining
from v1lit.data.sampling.rows import (
    Measure,
    MicroBatchPlan,
    MicroBatchStream,
    Substream,
    filled_rows,
    similar_rows,
)
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder
from v1lit.data.synthetic import make_example

LENGTH = 8192
ACCUMULATE = 4
PADDED, AHEAD = 4, 16
"""Examples of a padded batch, and batches within which they are sorted."""
VISION = 0.39
"""Work of an image token in the vision tower, over that of any token in the language layers."""
SCENES, SIDES = 1500, (112, 1600)
"""Drawn scenes, and their sides in pixels at least and at most."""
START = MicroBatchState()
Steps = np.ndarray
"""Tokens and image tokens of every row, `[steps, accumulated, ranks, 2]`."""


def drawn(count: int) -> Iterator[Example]:
    """Scenes whose sides are spread evenly over orders of magnitude."""
    rng = random.Random(0)
    low, high = map(math.log, SIDES)
    for number in range(count):
        size = (round(math.exp(rng.uniform(low, high))), round(math.exp(rng.uniform(low, high))))
        yield make_example(rng, id=f"scene-{number}", size=size)


def planned(
    lengths: Sequence[Length],
    ranks: int,
    steps: int,
    rows: Callable[[MicroBatchStream], Iterator[MicroBatchPlan]],
    padded: bool = False,
) -> Steps:
    """What the first steps of an epoch have, which reads the examples as often as it takes."""
    draws, micro_batches = 10**7, ranks * ACCUMULATE
    sequence = GlobalSequence([SourceOrder([len(lengths)], Shuffle())], [draws], 0)
    found = np.zeros((steps, micro_batches, 2), dtype=np.int64)
    for micro_batch in range(micro_batches):
        stream = Substream(sequence, 0, Remaining(), micro_batch, micro_batches)
        for step, row in enumerate(islice(rows(stream), steps)):
            own = [lengths[ref.index] for ref in row.refs]
            tokens = [length.tokens for length in own]
            computed = max(tokens) * len(tokens) if padded else sum(tokens)
            found[step, micro_batch] = computed, sum(length.image_tokens for length in own)
    return found.reshape(steps, ACCUMULATE, ranks, 2)


def by_work(steps: Steps) -> Steps:
    """The same with every rank's rows of a step in the order in which they are computed."""
    ordered = steps.copy()
    for step, rank in np.ndindex(steps.shape[0], steps.shape[2]):
        own = steps[step, :, rank]
        ordered[step, :, rank] = own[heaviest_first(own.sum(-1).tolist())]
    return ordered


def largest_over_mean(amount: np.ndarray) -> float:
    """The largest over ranks, summed over all rows of all steps, over the mean; of `[..., ranks]`."""
    return float(amount.max(-1).sum() / amount.mean(-1).sum())


def rows_of(name: str, lengths: Sequence[Length], ranks: int, steps: int) -> list[Row]:
    """The figures of one set on one number of ranks."""

    def hidden(ref: ExampleRef) -> Length:
        """What rows would be planned by if images counted like text."""
        return Length(lengths[ref.index].tokens, 0, 0)

    def known(ref: ExampleRef) -> Length:
        return lengths[ref.index]

    def filled(measured: Measure) -> Steps:
        rows = partial(filled_rows, state=START, packing=PackingConfig(LENGTH), measure=measured)
        return planned(lengths, ranks, steps, rows)

    def similar(apart: bool) -> Steps:
        """With another seed for each micro-batch, each has its batches in another order."""
        return planned(
            lengths,
            ranks,
            AHEAD,
            lambda stream: similar_rows(
                stream, START, PADDED, AHEAD, known, stream.micro_batch if apart else 0
            ),
            padded=True,
        )

    packed, padded = f"packed to {LENGTH:,}", f"{PADDED} padded, of similar length"
    found = {
        f"{packed} by tokens alone": filled(hidden),
        packed: by_work(filled(known)),
        f"{padded}, every rank in its own order": similar(True),
        padded: by_work(similar(False)),
    }
    made = []
    for how, of_steps in found.items():
        tokens, image_tokens = of_steps[..., 0], of_steps[..., 1]
        amounts = {"tokens": tokens, "image tokens": image_tokens, "work": tokens + VISION * image_tokens}
        for what, amount in amounts.items():
            value = largest_over_mean(amount)
            title = f"Balance, {name}, {ranks} ranks, {how}: {what}, largest / mean"
            made.append(Row(title, value, "x", "", 1.0, 1 / value))
    return made


def lengths_of(case: Case, limit: int | None) -> list[Length]:
    """Lengths of one set; of its first `limit` examples."""
    processor, config = case.processor(), EncodingConfig(max_tokens=LENGTH)
    source = real() if case.real else drawn(SCENES)
    return [measure(example, processor, config) for example in islice(source, limit)]


CASES = (
    Case("v1g_real", real=True, max_pixels=QWEN_MAX_PIXELS),
    Case("drawn scenes of many sizes", real=False, max_pixels=QWEN_MAX_PIXELS),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="few examples: sees that everything runs")
    given = parser.parse_args(arguments)
    command = "python tools/bench/balance.py" + (" --quick" if given.quick else "")
    rows = []
    for case in CASES:
        if case.real and not DATA.is_dir():
            rows.append(Row(f"Balance, {case.name}", None, "x", command, note="v1g_real is absent"))
            continue
        lengths = lengths_of(case, 40 if given.quick else None)
        for ranks in (2,) if given.quick else (8, 64):
            rows += [
                replace(row, command=command)
                for row in rows_of(case.name, lengths, ranks, 1 if given.quick else 8)
            ]
    print_rows(rows)
    if given.json:
        write_rows(given.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
