"""A whole training step: v1lit, the published way, and plain fine-tuning without pointers, on a CPU.

Usage: python tools/bench/step.py [--quick] [--json FILE]

Qwen2.5-VL with 79 million random parameters, of which the vocabulary's 152,064 rows have nearly all; two long
examples of up to 2,048 tokens, each put together from several of ../shared/data/v1g_real. All contenders
learn from the same two examples with the same AdamW; times are taken in turn in one process, memory in a
process for each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from examples import Batch, batch_of, describe, fill, joined, make_processor, shares, stream
from limits import step_limit
from machine import matmul_ceiling
from measure import Seconds, alternate, in_subprocess, peak_above
from models import (
    PUBLISHED_CASE,
    TINY,
    Size,
    make_backbone,
    make_model,
    make_optimizer,
    set_pointer_options,
    settle,
    training_step,
)
from plain import plain_loss, stock_loss, without_pointers
from published import published_loss
from rows import Row, print_rows, write_rows
from torch import Tensor

from v1lit.pointer.model import PointAndCopyModel

TOP_K = 40
"""Logits in the published z-loss."""
Z_WEIGHT = 1e-5
"""Of the z-loss, in both."""
MIB = 2**20
MEMORY_TIMEOUT = 150


@dataclass(frozen=True)
class Case:
    """What is computed, and how often."""

    size: Size
    rows: int
    tokens: int
    max_side: int
    slow_repeats: int
    """Of the contenders that hold all logits."""
    repeats: int


FULL = Case(PUBLISHED_CASE, rows=2, tokens=2048, max_side=672, slow_repeats=2, repeats=5)
QUICK = Case(TINY, rows=2, tokens=600, max_side=112, slow_repeats=1, repeats=1)


class Bench:
    """The batch, the model and the losses of all contenders, made where they are first needed."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.processor = make_processor(case.size.vocabulary, case.max_side)
        filled = fill(stream(self.processor), case.rows, case.tokens)
        examples = [joined(row, self.processor) for row in filled]
        self.batch = batch_of(examples, case.tokens, self.processor.pad_token_id)
        self.model: PointAndCopyModel = make_model(case.size, "cpu", torch.float32)

    @property
    def plain_batch(self) -> Batch:
        """Text where the pointers were."""
        start = self.case.size.vocabulary
        batch = self.batch
        return replace(
            batch,
            input_ids=without_pointers(batch.input_ids, start),
            labels=without_pointers(batch.labels, start),
            flat_ids=without_pointers(batch.flat_ids, start),
            flat_labels=without_pointers(batch.flat_labels, start),
        )

    def v1lit(self, top_k: int | None) -> Tensor:
        """The loss as v1lit computes it; with `top_k` it is the published one."""
        set_pointer_options(self.model, z_weight=Z_WEIGHT, z_top_k=top_k)
        out = self.model(
            input_ids=self.batch.flat_ids,
            labels=self.batch.flat_labels,
            segment_lengths=self.batch.lengths,
            **self.batch.image_inputs,
        )
        assert out.loss is not None
        return out.loss

    def published(self) -> Tensor:
        """The same loss in the published way."""
        batch = self.batch
        return published_loss(
            self.model,
            batch.input_ids,
            batch.attention_mask,
            batch.labels,
            batch.image_inputs,
            Z_WEIGHT,
            TOP_K,
        )

    def steps(self) -> dict[str, Callable[[], None]]:
        """Training steps of everything that trains a model with pointers, on one model and one optimizer."""
        optimizer = make_optimizer(self.model.parameters())
        settle(optimizer)
        losses: dict[str, Callable[[], Tensor]] = {
            "published": self.published,
            "v1lit, top 40": partial(self.v1lit, TOP_K),
            "v1lit": partial(self.v1lit, None),
        }
        return {name: training_step(loss, optimizer) for name, loss in losses.items()}

    def plain_step(self) -> Callable[[], None]:
        """A step of plain fine-tuning: the same backbone and its parameters, without the pointer head."""
        backbone, batch = self.model.backbone, self.plain_batch
        optimizer = make_optimizer(backbone.parameters())
        return training_step(
            lambda: plain_loss(backbone, self.model.family, batch, self.model.attention), optimizer
        )

    def stock_step(self) -> Callable[[], None]:
        """A step of transformers as it comes, on a model of its own that v1lit has not touched."""
        backbone, batch = make_backbone(self.case.size, "cpu", torch.float32), self.plain_batch
        image_token = self.processor.image_token_id
        optimizer = make_optimizer(backbone.parameters())
        return training_step(lambda: stock_loss(backbone, batch, image_token), optimizer)


def measure_memory(name: str, case: Case) -> int:
    """Bytes at the peak of one step above weights, gradients, optimizer state and batch."""
    return peak_above(Bench(case).steps()[name])


def memory_elsewhere(name: str, quick: bool) -> int:
    """The same in a process of its own; in quick mode in this one."""
    if quick:
        return measure_memory(name, QUICK)
    found = in_subprocess([str(Path(__file__)), "--memory", name], timeout=MEMORY_TIMEOUT)
    return int(found["peak"])


def measure(quick: bool) -> list[Row]:
    """All rows."""
    case = QUICK if quick else FULL
    memory = {name: memory_elsewhere(name, quick) for name in ("published", "v1lit, top 40")}
    bench = Bench(case)
    steps = bench.steps()
    fast = alternate({"plain": bench.plain_step(), "v1lit": steps["v1lit"]}, case.repeats)
    # A step that holds all logits takes half a minute; the first one is no slower than the others.
    slow = alternate({**steps, "transformers": bench.stock_step()}, case.slow_repeats, warm=False)
    ceiling = matmul_ceiling("cpu", torch.float32, quick)
    limit = step_limit(bench.model, bench.batch, ceiling)
    note = f"{describe()}: {shares(bench.batch, bench.processor)}"
    rows = [
        *against_published(slow, memory, limit, f"{case.rows} x {case.tokens:,} tokens", note),
        *against_plain(fast, slow["transformers"], limit),
    ]
    command = "python tools/bench/step.py" + (" --quick" if quick else "")
    return [replace(row, command=command, met=None if quick else row.met) for row in rows]


def against_published(
    taken: dict[str, Seconds], memory: dict[str, int], limit: float, size: str, note: str
) -> list[Row]:
    """Time and memory beside the published way; `limit` in seconds."""
    old = taken["published"].median
    rows = [seconds_row(f"Step of {size}, the published way", taken["published"], limit, note)]
    for name, what, goal in (
        ("v1lit, top 40", "v1lit, the same loss", ">= 3"),
        ("v1lit", "v1lit as it comes (z-loss over all logits)", None),
    ):
        ratio = old / taken[name].median
        rows += [
            seconds_row(f"Step of {size}, {what}", taken[name], limit),
            Row(
                f"{what}: times as fast as the published way",
                ratio,
                "x",
                "",
                goal=goal,
                met=met(ratio >= 3, goal),
            ),
        ]
    ours, theirs = memory["v1lit, top 40"], memory["published"]
    share = ours / max(theirs, 1)  # tiny sizes may fit into memory that was freed before
    above = "peak above weights, gradients, optimizer state and batch"
    return [
        *rows,
        Row(f"Memory of a step of {size}, the published way", theirs / MIB, "MiB", "", note=above),
        Row(f"Memory of a step of {size}, v1lit, the same loss", ours / MIB, "MiB", "", note=above),
        Row("v1lit: share of the published way's memory", share, "x", "", goal="<= 0.2", met=share <= 0.2),
    ]


def against_plain(taken: dict[str, Seconds], stock: Seconds, limit: float) -> list[Row]:
    """Time beside fine-tuning without pointers."""
    ratio = taken["v1lit"].median / taken["plain"].median
    same = "same flat batch with text for pointers, same attention, vision tower, loss kernel and optimizer"
    padded = "padded batch, its own vision tower, attention and loss over all logits"
    return [
        seconds_row("Plain fine-tuning of the same backbone", taken["plain"], limit, same),
        Row("v1lit / plain fine-tuning: time", ratio, "x", "", goal="<= 1.05", met=ratio <= 1.05),
        seconds_row("Plain fine-tuning with transformers as it comes", stock, limit, padded),
    ]


def seconds_row(title: str, taken: Seconds, limit: float, note: str = "") -> Row:
    """A time with the least that it could be: the operations that are needed over the product ceiling."""
    least = f"median; least {taken.least:.3g} s"
    return Row(
        title,
        taken.median,
        "s",
        "",
        limit=limit,
        share=limit / taken.median,
        note=f"{least}; {note}" if note else least,
    )


def met(reached: bool, goal: str | None) -> bool | None:
    """None where nothing was promised."""
    return None if goal is None else reached


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument("--memory", metavar="NAME", help="only the peak memory of one contender, in bytes")
    given = parser.parse_args(arguments)
    if given.memory:
        peak = measure_memory(given.memory, QUICK if given.quick else FULL)
        print(json.dumps({"peak": peak}))
        return 0
    rows = measure(given.quick)
    print_rows(rows)
    if given.json:
        write_rows(given.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
