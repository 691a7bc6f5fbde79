"""Generation with pointers beside the backbone's own, batches beside single rows, caches, running batches.

Usage: python tools/bench/generate.py [--quick] [--out FOLDER] [--only PART]    (`make bench-generate`)

Random Qwen2.5-VLs in one thread; the stock model has the very same weights. Times are those of the thread's
processor: steps of all contenders are taken in turn, and medians are compared, so that a busy machine slows
all of them alike. Adds its part to docs/benchmarks.md; what fails is listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from examples import make_processor
from models import TINY, Size, make_backbone, make_model
from page import report, update
from rows import Row, print_rows
from run import out_folder
from running import Load, running_rows
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from turns import Generation, ratio, steps_in_turn

from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.inference.decoding import Decoding
from v1lit.pointer.model import PointAndCopyModel
from v1lit.serving.cache_rows import cache_bytes
from v1lit.testing.models import noise

COMMAND = "python tools/bench/generate.py"
SMALL = Size(32_000, 512, 8, 8, 2, 1536, 64, 2, 2, 128, (1,), tied=False)
"""57 million parameters."""


@dataclass(frozen=True)
class Case:
    """What is generated."""

    small: Size = SMALL
    side: int = 448
    """Pixels; an image token covers 28 x 28 of them."""
    tokens: int = 40
    """New tokens of a generation."""
    repeats: int = 5
    """Generations of one row of the small model; half as many where they take longer."""
    rows: int = 8
    load: Load = field(default_factory=Load)


QUICK = Case(TINY, side=112, tokens=4, repeats=1, rows=2, load=Load(requests=4, rows=2, longest=6))


class Bench:
    """A model, the stock one with its weights, and prompts."""

    def __init__(self, case: Case, size: Size, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.case, self.size, self.dtype = case, size, dtype
        self.processor = make_processor(size.vocabulary)
        self.model: PointAndCopyModel = make_model(size, "cpu", dtype).eval()
        self.stock: Any = make_backbone(size, "cpu", dtype).eval()
        self.stock.load_state_dict(self.model.backbone.state_dict(), assign=True)
        models: tuple[PreTrainedModel, ...] = (self.model, self.stock)
        for model in models:
            model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)

    def prompt(self, rows: int) -> dict[str, torch.Tensor]:
        """The same question about the same image, several times."""
        image, message = noise((self.case.side, self.case.side)), Message("user", "<image>\nWhere is it?")
        one = encode_prompt("bench", [message], [image], self.processor, EncodingConfig())
        batch = collate([one] * rows, 0, side="left")
        images = {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in batch.image_inputs.items()
        }
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **images}

    def pointing(self, rows: int, tokens: int, **options: Any) -> Generation:
        """With pointers."""
        prompt: dict[str, Any] = self.prompt(rows)
        return lambda told: self.model.generate(**prompt, max_new_tokens=tokens, streamer=told, **options)

    def bare(self, rows: int, tokens: int) -> Generation:
        """The backbone's own generation."""
        prompt = self.prompt(rows)
        prompt["mm_token_type_ids"] = (prompt["input_ids"] == self.processor.image_token_id).int()
        return lambda told: self.stock.generate(**prompt, max_new_tokens=tokens, streamer=told)

    def __str__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.stock.parameters()) / 1e6
        kind = str(self.dtype).removeprefix("torch.")
        return f"{millions:.0f} M parameters, {kind}"


class Untold(BaseStreamer):
    """Nobody listens."""

    def put(self, value: Any) -> None: ...
    def end(self) -> None: ...


def beside_stock(case: Case) -> list[Row]:
    """A decoding step and a prefill with pointers, over those of the stock model."""
    found = []
    bench = Bench(case, case.small)
    for rows, repeats in ((1, case.repeats), (case.rows, max(1, case.repeats // 3))):
        works = {"v1lit": bench.pointing(rows, case.tokens), "stock": bench.bare(rows, case.tokens)}
        steps = steps_in_turn(works, repeats)
        what, ms = f"{bench}, {_rows(rows)}", {name: _ms(taken) for name, taken in steps.items()}
        value = ratio(steps, "v1lit", "stock")
        found.append(
            Row(f"Decoding step with pointers / stock, {what}", value, "x", COMMAND, goal="<= 1.02",
                met=value <= 1.02, note=f"{_pair(ms)}, medians of {len(steps['v1lit'])} steps each")
        )  # fmt: skip
        ends = {"v1lit": bench.pointing(rows, 1), "stock": bench.bare(rows, 1)}
        taken: dict[str, list[float]] = {name: [] for name in ends}
        for _ in range(repeats + 1):
            for name, work in ends.items():
                taken[name].append(_cpu(work))
        value, ms = ratio(taken, "v1lit", "stock"), {name: _ms(times) for name, times in taken.items()}
        found.append(
            Row(f"Prefill with pointers / stock, {what}", value, "x", COMMAND, goal="<= 1.05",
                met=value <= 1.05, note=f"{_pair(ms)}; from the call to the first token, the image included")
        )  # fmt: skip
    return found


def batched(case: Case) -> list[Row]:
    """Tokens/s of the steps of a batch over those of one row."""
    found = []
    for dtype, least in ((torch.float32, 3), (torch.bfloat16, 5)):
        bench = Bench(case, case.small, dtype)
        works = {"one": bench.pointing(1, case.tokens), "batch": bench.pointing(case.rows, case.tokens)}
        steps = steps_in_turn(works, (case.repeats + 1) // 2)
        value = case.rows * ratio(steps, "one", "batch")
        rates = {name: 1000 * rows / _ms(steps[name]) for name, rows in (("one", 1), ("batch", case.rows))}
        found.append(
            Row(f"Decoding steps of {case.rows} rows / one row, tokens/s, {bench}", value, "x", COMMAND,
                goal=f">= {least}", met=value >= least,
                note=f"{rates['one']:.0f} and {rates['batch']:.0f} tokens/s; steps alone, no prefill")
        )  # fmt: skip
    return found


def caches(case: Case) -> list[Row]:
    """What a static cache and compiled steps gain; every token is compared."""
    bench = Bench(case, case.small)
    options = {
        "a growing cache": {},
        "a static cache": Decoding(static_cache=True).options(bench.model),
        "compiled steps": Decoding(compiled=True).options(bench.model),
    }
    works = {name: bench.pointing(1, case.tokens, **more) for name, more in options.items()}
    begun = time.perf_counter()
    said: dict[str, Any] = {name: work(Untold()) for name, work in works.items()}
    compiling = time.perf_counter() - begun
    equal = all(torch.equal(ids, said["a growing cache"]) for ids in said.values())
    steps = steps_in_turn(works, (case.repeats + 1) // 2)
    return [
        Row(f"Decoding step with {name} / a growing cache, {bench}", ratio(steps, name, "a growing cache"),
            "x", COMMAND, goal="equal tokens", met=equal,
            note=f"{_ms(steps[name]):.1f} ms against {_ms(steps['a growing cache']):.1f} ms"
            + (f"; the first call compiles, up to {compiling:.0f} s here" if "compiled" in name else ""))
        for name in list(works)[1:]
    ]  # fmt: skip


def memory(case: Case) -> list[Row]:
    """Bytes of the pointer memory and of the KV cache for every image token."""
    found = {}
    for layers in (case.small.layers, 2 * case.small.layers):
        bench = Bench(case, replace(case.small, layers=layers))
        prompt = bench.prompt(1)
        with torch.no_grad():
            out = bench.model(**prompt, use_cache=True, logits_to_keep=1)
        images = int((prompt["input_ids"] == bench.processor.image_token_id).sum())
        kept = out.pointer_memory.bytes / images
        found[layers] = (kept, cache_bytes(out.cache) / prompt["input_ids"].shape[1])
    (kept, cached), (again, twice) = found.values()
    hidden = case.small.hidden
    return [
        Row(f"Pointer memory of an image token, hidden size {hidden}, float32", kept, "bytes", COMMAND,
            goal="the same with twice the layers", met=kept == again,
            note=f"a key and a value of {hidden} numbers each, and 5 bytes of masks; the KV cache takes "
            f"{cached:,.0f} bytes a token with {case.small.layers} layers, {twice:,.0f} with twice as many"),
    ]  # fmt: skip


def _cpu(work: Generation) -> float:
    begun = time.thread_time()
    work(Untold())
    return time.thread_time() - begun


def _ms(taken: Sequence[float]) -> float:
    return 1000 * statistics.median(taken)


def _pair(ms: dict[str, float]) -> str:
    return f"{ms['v1lit']:.2f} ms against {ms['stock']:.2f} ms"


def _rows(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows} rows"


PARTS: dict[str, tuple[str, Callable[[Case], list[Row]]]] = {
    "stock": ("Beside the backbone's own generation", beside_stock),
    "batch": ("A batch beside one row", batched),
    "cache": ("Static caches and compiled steps", caches),
    "running": ("A running batch", lambda case: running_rows(Bench(case, case.small), case.load, COMMAND)),
    "memory": ("The pointer memory", memory),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: sees that everything runs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of docs/")
    parser.add_argument("--only", choices=PARTS, help="one part, printed and not written")
    given = parser.parse_args(arguments)
    folder = None if given.only else out_folder(given, parser)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    groups: dict[str, list[Row]] = {}
    well = True
    try:
        for name in [given.only] if given.only else PARTS:
            title, work = PARTS[name]
            try:
                rows = work(QUICK if given.quick else Case())
            except Exception as error:
                rows, well = [Row(title, None, "", COMMAND, note=f"failed: {error}")], False
            groups[title] = [replace(row, met=None) for row in rows] if given.quick else rows
            print_rows(groups[title])
        if folder is not None:
            update(folder, "generation", report({}, groups))
    finally:
        torch.set_num_threads(threads)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
