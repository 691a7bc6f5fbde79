"""What needs a GPU: the loss kernel, a training step of a 2B model, decoding: `make bench-gpu`.

Usage: python tools/bench/gpu.py [--quick --out FOLDER [--device cpu]]

The model is shaped like Qwen2.5-VL with the language model of Qwen2-VL-2B, its weights are random. A step
trains all of them in bfloat16 on one row of 8,192 tokens, packed from examples that are as long as those of
v1g_real. Adds its part to docs/benchmarks.md; what fails is listed with the reason, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from examples import IGNORE, Batch, batch_of, describe, fill, make_processor, shares, stream
from limits import step_operations
from machine import bandwidth_ceiling, matmul_ceiling
from measure import peak_above, seconds
from models import TINY, TWO_BILLION, Size, make_model, make_optimizer, settle, training_step
from page import report, update
from rows import Row, print_rows
from run import DOCS, Benchmark, rows_of

from v1lit.backbones.attention import choose_attention
from v1lit.backbones.efficiency import enable_checkpointing
from v1lit.backbones.processor import Processor
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.peak import find_peak

MIB = 2**20
COMMAND = "make bench-gpu"


@dataclass(frozen=True)
class Case:
    """What is computed."""

    size: Size
    tokens: int
    max_side: int
    decoded: int
    """New tokens of every sequence."""
    sequences: int
    """Decoded at the same time."""
    repeats: int


FULL = Case(TWO_BILLION, tokens=8192, max_side=672, decoded=128, sequences=8, repeats=5)
QUICK = Case(TINY, tokens=600, max_side=112, decoded=4, sequences=2, repeats=1)


@dataclass(frozen=True)
class Place:
    """Where it is computed, and how fast that is at its best."""

    device: torch.device
    dtype: torch.dtype
    products: float
    """FLOP/s."""
    copies: float
    """bytes/s"""


def training_rows(case: Case, place: Place, recompute: bool) -> list[Row]:
    """One training step on a packed row: time, tokens/s, MFU, peak memory."""
    torch.manual_seed(0)
    model, processor, batch = _prepared(case, place)
    if recompute:
        enable_checkpointing(model.backbone, model.family, ["language", "vision"])
    optimizer = make_optimizer(model.parameters())
    settle(optimizer)

    def loss() -> torch.Tensor:
        out = model(
            input_ids=batch.flat_ids,
            labels=batch.flat_labels,
            segment_lengths=batch.lengths,
            **batch.image_inputs,
        )
        assert out.loss is not None
        return out.loss

    step = training_step(loss, optimizer)
    taken = seconds(step, case.repeats).median
    extra = peak_above(step, place.device)
    what = f"Step of {batch.flat_ids.numel():,} tokens, {_name(case.size)}" + (
        ", recomputed" if recompute else ""
    )
    operations = step_operations(model, batch)
    limit = operations / place.products
    peak = find_peak(place.device, str(place.dtype).removeprefix("torch."))
    used = operations / taken / peak.flops
    note = (
        f"{describe()} in {len(batch.lengths)} segments: {shares(batch, processor)}; "
        f"attention {model.attention}"
        + ("; activations are recomputed, which is not counted as work" if recompute else "")
    )
    held = sum(p.numel() * p.element_size() for p in model.parameters()) * 4
    return [
        Row(what, taken, "s", COMMAND, limit=limit, share=limit / taken, note=note),
        Row(f"{what}: tokens", batch.flat_ids.numel() / taken, "tokens/s", COMMAND),
        Row(
            f"{what}: MFU", 100 * used, "%", COMMAND, limit=100.0, share=used,
            goal=None if recompute else ">= 50 %", met=None if recompute else used >= 0.5,
            note=f"of {peak.flops / 1e12:,.3g} TFLOP/s, {peak.source}",
        ),
        Row(f"{what}: peak memory above weights, gradients and optimizer state", extra / MIB, "MiB", COMMAND,
            note=f"those take {held / MIB:,.0f} MiB"),
    ]  # fmt: skip


def _prepared(case: Case, place: Place) -> tuple[PointAndCopyModel, Processor, Batch]:
    """The model and a packed row of examples on the device."""
    processor = make_processor(case.size.vocabulary, case.max_side)
    examples = fill(stream(processor), 1, case.tokens)[0]
    batch = batch_of(examples, case.tokens, processor.pad_token_id).to(place.device, place.dtype)
    model = make_model(case.size, place.device, place.dtype)
    model.attention = choose_attention("auto", place.device, place.dtype, model.is_causal).name
    return model, processor, batch


def _name(size: Size) -> str:
    return "a 2B model" if size is TWO_BILLION else "a tiny model"


def decoding_rows(case: Case, place: Place) -> list[Row]:
    """Greedy decoding with a cache: with the pointer head and, of the bare backbone, without."""
    torch.manual_seed(0)
    model, processor, _ = _prepared(case, place)
    model.eval()
    backbone: Any = model.backbone
    prompt: dict[str, Any] = _prompts(case, processor, place)
    fixed: dict[str, Any] = {
        "max_new_tokens": case.decoded,
        "min_new_tokens": case.decoded,
        "do_sample": False,
    }
    plain = {**prompt, "mm_token_type_ids": (prompt["input_ids"] == processor.image_token_id).int()}
    with torch.no_grad():
        pointing = seconds(lambda: model.generate(**prompt, **fixed), case.repeats).median
        bare = seconds(lambda: backbone.generate(**plain, **fixed), case.repeats).median
    tokens = case.decoded * case.sequences
    # A step reads every weight of the decoder and the head once; caches and keys are small beside them.
    read = [*model.backbone.get_decoder().parameters(), model.get_output_embeddings().weight]
    weights = sum({id(p): p.numel() * p.element_size() for p in read}.values())
    limit = case.sequences * place.copies / weights
    note = (
        f"{case.sequences} sequences, {prompt['input_ids'].shape[1]} tokens of prompt, {case.decoded} new "
        "ones each, prefill included; the limit is reading all weights once per token"
    )
    return [
        Row(title, tokens / taken, "tokens/s", COMMAND, limit=limit, share=tokens / taken / limit, note=more)
        for title, taken, more in (
            ("Decoding with the pointer head", pointing, note),
            ("Decoding without it (the backbone's own generate)", bare, ""),
        )
    ]


def _prompts(case: Case, processor: Processor, place: Place) -> dict[str, torch.Tensor]:
    """An example up to its answer, several times."""
    example = next(stream(processor))
    start = int((example.labels != IGNORE).nonzero()[0])
    ids = example.input_ids[:start].repeat(case.sequences, 1)
    images = {
        name: tensor.repeat(case.sequences, *[1] * (tensor.ndim - 1))
        for name, tensor in example.image_inputs.items()
    }
    images = {
        name: tensor.to(place.device, place.dtype if tensor.is_floating_point() else None)
        for name, tensor in images.items()
    }
    ids = ids.to(place.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}


def attempt(title: str, work: Callable[[], list[Row]], quick: bool) -> tuple[list[Row], bool]:
    """The rows of `work`, or one that says why there are none; memory is given back in between."""
    try:
        rows = work()
        good = True
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        rows, good = (
            [Row(title, None, "", COMMAND, note=f"failed: {type(error).__name__}: {lines[0]}")],
            False,
        )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [replace(row, met=None) for row in rows] if quick else rows, good


def measure(case: Case, place: Place, quick: bool) -> tuple[dict[str, list[Row]], bool]:
    """All groups of rows, and whether all went well."""
    loss = Benchmark("The loss", "loss.py", 600, ("--device", place.device.type))
    results = {
        "The loss": [rows_of(loss, quick)],
        "The whole step": [
            attempt("Step", lambda: training_rows(case, place, recompute=False), quick),
            attempt("Step, recomputed", lambda: training_rows(case, place, recompute=True), quick),
        ],
        "Decoding": [attempt("Decoding", lambda: decoding_rows(case, place), quick)],
    }
    groups = {title: [row for rows, _ in parts for row in rows] for title, parts in results.items()}
    return groups, all(good for parts in results.values() for _, good in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda; with --quick also cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of docs/")
    given = parser.parse_args(arguments)
    if given.quick and given.out is None:
        parser.error("--quick gives figures that mean nothing: say with --out FOLDER where to write them")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; the page lists these figures as missing")
    if device.type != "cuda" and not given.quick:
        parser.error("on a CPU this takes hours; see that it runs with --quick")
    dtype = torch.bfloat16
    place = Place(
        device, dtype, matmul_ceiling(device, dtype, given.quick), bandwidth_ceiling(device, given.quick)
    )
    groups, well = measure(QUICK if given.quick else FULL, place, given.quick)
    for rows in groups.values():
        print_rows(rows)
    most = {
        "matrix products in bfloat16": f"{place.products / 1e12:,.3g} TFLOP/s",
        "copies": f"{place.copies / 1e9:,.0f} GB/s",
    }
    update(given.out or DOCS, "gpu", report(most, groups))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
