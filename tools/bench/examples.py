"""The examples that the benchmarks of the training step learn from, and the batches made of them.

Real ones from ../shared/data/v1g_real beside the checkout; where that is absent, random ones of the same
lengths. Text is written with v1lit's small tokenizer, whose examples are about as long as Qwen's (605 tokens
against 635 by the data's own estimate); ids from `vocabulary` on are pointers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import Encoded, encode
from v1lit.labels import IGNORE

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "v1g_real"
SEED = 0
TEXT = range(100, 1000)
"""Ids of plain text in the small tokenizer, none of them a mark."""
IMAGE_START = 40
"""Tokens before the image: the system message."""


class Shape(NamedTuple):
    """One example in numbers."""

    rows: int
    cols: int
    """Image tokens are rows x cols."""
    prompt: int
    """Text tokens that are not learned."""
    text: int
    """Text tokens that are learned."""
    pointers: int


# 16 of the 1,405 training examples of v1g_real, spread evenly over their lengths, whose figures are those of
# all within 1 %: 604 tokens on average, 55.3 % of them image tokens; 38.2 % of the tokens are learned, and
# 50.2 % of these are pointers.
SHAPES = [
    *(Shape(13, 17, 31, 73, 90), Shape(13, 23, 33, 78, 216), Shape(8, 8, 38, 64, 40)),
    *(Shape(17, 23, 50, 276, 253), Shape(17, 23, 33, 73, 72), Shape(17, 23, 51, 79, 30)),
    *(Shape(17, 23, 42, 88, 15), Shape(17, 23, 42, 85, 72), Shape(17, 23, 38, 73, 70)),
    *(Shape(17, 23, 37, 140, 126), Shape(17, 23, 58, 256, 342), Shape(6, 10, 32, 95, 36)),
    *(Shape(18, 24, 30, 57, 240), Shape(17, 23, 39, 203, 181), Shape(17, 23, 38, 129, 46)),
    Shape(17, 23, 43, 83, 25),
]


@dataclass(frozen=True)
class Batch:
    """The same examples twice: padded rows, and one flat row of segments."""

    input_ids: Tensor
    """`[rows, tokens]`"""
    attention_mask: Tensor
    """`[rows, tokens]`, 1 where there is a token."""
    labels: Tensor
    """`[rows, tokens]`, -100 where nothing is learned."""
    flat_ids: Tensor
    """`[1, real tokens]`"""
    flat_labels: Tensor
    """`[1, real tokens]`"""
    lengths: tuple[int, ...]
    """Tokens of each segment; they are the padded rows without their padding."""
    image_inputs: dict[str, Tensor]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """The batch on another device, pixels in another type."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return Batch(
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            labels=move(self.labels),
            flat_ids=move(self.flat_ids),
            flat_labels=move(self.flat_labels),
            lengths=self.lengths,
            image_inputs={name: move(tensor) for name, tensor in self.image_inputs.items()},
        )


def make_processor(vocabulary: int, max_side: int = 672) -> Processor:
    """The published image options: whole images, the longer side at most `max_side` pixels."""
    config = BackboneConfig("qwen2_5_vl", tiny={"max_pixels": 28 * 28 * 16384}, image={"max_side": max_side})
    return load_processor(config, pointer_start=vocabulary)


def stream(processor: Processor, data: Path = DATA) -> Iterator[Encoded]:
    """Examples without end, always the same ones: real, or, where `data` is no folder, drawn."""
    yield from cycle(real(processor, data) if data.is_dir() else drawn(processor))


def describe(data: Path = DATA) -> str:
    """Which of the two `stream` gives."""
    return "examples of v1g_real" if data.is_dir() else "random tokens with the lengths of v1g_real"


def real(processor: Processor, data: Path) -> Iterator[Encoded]:
    """Training examples of a folder in the published row format, shuffled."""
    import pyarrow.parquet as pq

    from v1lit.data.formats.v1g import row_to_example

    table = pq.read_table(min(data.glob("train-*.parquet")))
    order = list(range(table.num_rows))
    random.Random(SEED).shuffle(order)
    for number in order:
        row = table.slice(number, 1).to_pylist()[0]
        yield encode(row_to_example(row), processor, EncodingConfig())


def drawn(processor: Processor) -> Iterator[Encoded]:
    """Random tokens and pixels with the lengths of `SHAPES`, images no larger than the processor's limit."""
    side = (processor.image_options["max_side"] or 672) // 28
    generator = torch.Generator().manual_seed(SEED)
    for number, shape in enumerate(SHAPES):
        rows, cols = min(shape.rows, side), min(shape.cols, side)
        yield _drawn(f"drawn_{number}", shape._replace(rows=rows, cols=cols), processor, generator)


def _drawn(id: str, shape: Shape, processor: Processor, generator: torch.Generator) -> Encoded:
    def text(count: int) -> Tensor:
        return torch.randint(TEXT.start, TEXT.stop, (count,), generator=generator)

    places = shape.rows * shape.cols
    pointers = processor.pointer_start + torch.randint(0, places, (shape.pointers,), generator=generator)
    half = shape.text // 2
    answer = torch.cat([text(half), pointers, text(shape.text - half)])
    start = min(IMAGE_START, shape.prompt // 2)
    images = torch.full((places,), processor.image_token_id)
    prompt = torch.cat([text(start), images, text(shape.prompt - start)])
    pixels = torch.randn(4 * places, 3 * 2 * 14 * 14, generator=generator)
    grid = torch.tensor([[1, 2 * shape.rows, 2 * shape.cols]])
    return Encoded(
        id=id,
        input_ids=torch.cat([prompt, answer]),
        labels=torch.cat([torch.full_like(prompt, IGNORE), answer]),
        image_inputs={"pixel_values": pixels, "image_grid_thw": grid},
        patch_maps=(),
        regions=(),
    )


def fill(examples: Iterator[Encoded], rows: int, tokens: int, patience: int = 64) -> list[list[Encoded]]:
    """Examples for so many rows of at most so many tokens: each into the fullest row that it fits.

    Ends when the rows are full, or when `patience` examples in a row fit nowhere. Raises ValueError if a row
    stays empty.
    """
    filled: list[list[Encoded]] = [[] for _ in range(rows)]
    room = [tokens] * rows
    refused = 0
    for example in examples:
        length = len(example.input_ids)
        fitting = [row for row in range(rows) if room[row] >= length]
        if fitting:
            row = min(fitting, key=lambda row: room[row])
            filled[row].append(example)
            room[row] -= length
        refused = 0 if fitting else refused + 1
        if refused >= patience or not any(room):
            break
    if not all(filled):
        raise ValueError(f"no example fits into a row of {tokens} tokens; make rows longer or images smaller")
    return filled


def joined(examples: Sequence[Encoded], processor: Processor) -> Encoded:
    """One long example with several images and questions: pointers count over all its images."""
    ids, labels, before = [], [], 0
    for example in examples:
        ids.append(_shifted(example.input_ids, before, processor))
        labels.append(_shifted(example.labels, before, processor))
        before += int((example.input_ids == processor.image_token_id).sum())
    names = examples[0].image_inputs
    return Encoded(
        id="+".join(example.id for example in examples),
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        image_inputs={
            name: torch.cat([example.image_inputs[name] for example in examples]) for name in names
        },
        patch_maps=(),
        regions=(),
    )


def _shifted(ids: Tensor, by: int, processor: Processor) -> Tensor:
    return torch.where(ids >= processor.pointer_start, ids + by, ids)


def batch_of(examples: Sequence[Encoded], tokens: int, pad_id: int) -> Batch:
    """Padded rows of `tokens` tokens and the same without padding, one segment per example."""
    input_ids = torch.full((len(examples), tokens), pad_id)
    labels = torch.full((len(examples), tokens), IGNORE)
    mask = torch.zeros(len(examples), tokens, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length], labels[row, :length], mask[row, :length] = (
            example.input_ids,
            example.labels,
            1,
        )
    names = examples[0].image_inputs
    return Batch(
        input_ids,
        mask,
        labels,
        torch.cat([example.input_ids for example in examples])[None],
        torch.cat([example.labels for example in examples])[None],
        tuple(len(example.input_ids) for example in examples),
        {name: torch.cat([example.image_inputs[name] for example in examples]) for name in names},
    )


def shares(batch: Batch, processor: Processor) -> str:
    """What the batch is like, in words."""
    real, learned = batch.flat_ids.numel(), batch.flat_labels != IGNORE
    images = int((batch.flat_ids == processor.image_token_id).sum())
    pointers = int((batch.flat_labels >= processor.pointer_start).sum())
    count = int(learned.sum())
    return (
        f"{real:,} real tokens, {images / real:.0%} of them image tokens; {count / real:.0%} are learned, "
        f"{pointers / count:.0%} of these pointers"
    )
