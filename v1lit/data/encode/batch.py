"""Encoded examples -> one batch: flat for training, padded for generation and models that cannot pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from v1lit.data.encode.encoding import Encoded
from v1lit.labels import IGNORE, first_pointers


class LabelCounts(NamedTuple):
    """Supervised tokens: labels other than -100, except an example's first, which nothing predicts."""

    text: int
    pointers: int
    runs: int
    """Pointers that begin a run of pointers; part of `pointers`."""

    @classmethod
    def of(cls, examples: Sequence[Encoded], pointer_start: int) -> LabelCounts:
        """Counts over examples whose labels from `pointer_start` on are pointers."""
        text = pointers = runs = 0
        for example in examples:
            targets = example.labels[1:]
            example_pointers = int((targets >= pointer_start).sum())
            text += int((targets != IGNORE).sum()) - example_pointers
            pointers += example_pointers
            runs += int(first_pointers(example.labels, pointer_start)[1:].sum())
        return cls(text, pointers, runs)


class ReadPosition(NamedTuple):
    """What a batch leaves behind in its micro-batch of the optimizer step."""

    epoch: int
    micro_batch: int
    """Which of the step's batches on this rank it is, by the plan."""
    last: bool
    """Whether it is the last one of them that is used."""
    after: object
    """How far the micro-batch has come; of a stream, the rank. Only the reader of the data looks into it."""


@dataclass  # not frozen: Lightning's precision plugins write the converted tensors into a copy
class Batch:
    """Several examples, as one row without padding (flat) or one row each (padded)."""

    ids: tuple[str, ...]
    """Names of the examples, `[examples]`."""
    input_ids: Tensor
    """`[rows, tokens]`; flat: `[1, tokens]`, the examples one behind another."""
    attention_mask: Tensor
    """`[rows, tokens]`, 1 where there is a token."""
    labels: Tensor
    """`[rows, tokens]`, -100 where nothing is learned; an example's first token is never learned."""
    image_inputs: dict[str, Tensor]
    """The backbone's image tensors for all images, examples in order."""
    segment_lengths: tuple[int, ...] | None = None
    """Tokens of every example of a flat batch, in order; None for a padded one."""
    sources: tuple[int, ...] = ()
    """Which source of the mixture each example is from, `[examples]`; empty where nobody has said."""
    images: int = 0
    """Number of images."""
    image_tokens: int = 0
    """Of all images."""
    real_tokens: int = 0
    """Tokens that are no padding."""
    counts: LabelCounts | None = None
    """Supervised tokens of this batch; None where `pointer_start` was not given."""
    step_sums: Tensor | None = None
    """`[3]`, int64: `LabelCounts` summed over the optimizer step, all its batches and all ranks."""
    micro_batches_per_step: int = 1
    """Batches that an optimizer step averages: accumulated batches x ranks."""
    read: ReadPosition | None = None
    """How far the data have been read with this batch; None where nobody resumes."""
    unseen: int = 0
    """Regions that no image token sees."""
    cut: int = 0
    """Tokens cut to fit the length."""

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    @property
    def step_counts(self) -> Tensor | None:
        """`[3]`, float32: label counts of the optimizer step over the number of batches that it averages.

        A sum over this batch's tokens divided by it, averaged by Lightning (accumulation) and DDP (ranks), is
        the mean over all supervised tokens of the step.
        """
        # Kept as integers: a float tensor in a batch is rounded by Lightning's bf16-true and 16-true.
        return None if self.step_sums is None else self.step_sums.float() / self.micro_batches_per_step

    @property
    def model_inputs(self) -> dict[str, Any]:
        """What the model's `forward` takes of it."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": None if self.segment_lengths else self.attention_mask,
            "segment_lengths": self.segment_lengths,
            "labels": self.labels,
            **self.image_inputs,
        }

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch on another device; copies to a GPU do not wait where the batch is in pinned memory."""
        non_blocking = non_blocking and torch.device(device).type == "cuda"
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for faster copies to a GPU."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Any) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            labels=change(self.labels),
            image_inputs={name: change(tensor) for name, tensor in self.image_inputs.items()},
            step_sums=None if self.step_sums is None else change(self.step_sums),
        )

    def __len__(self) -> int:
        return len(self.ids)


def flatten(examples: Sequence[Encoded], pointer_start: int | None = None) -> Batch:
    """A batch of one row without padding `[1, tokens]`; with `pointer_start`, labels are counted.

    Raises ValueError for no examples.
    """
    _check(examples)
    input_ids = torch.cat([example.input_ids for example in examples])[None]
    return Batch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids, dtype=torch.long),
        labels=torch.cat([example.labels for example in examples])[None],
        segment_lengths=tuple(len(example.input_ids) for example in examples),
        **_common(examples, pointer_start),
    )


def collate(
    examples: Sequence[Encoded],
    pad_id: int,
    side: Literal["left", "right"] = "right",
    pointer_start: int | None = None,
) -> Batch:
    """A batch of one row per example, `[examples, tokens]`, padded to the longest.

    It is padded on the left for generation, on the right for training. With `pointer_start`, labels are
    counted. Raises ValueError for no examples and another side.
    """
    _check(examples)
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; allowed: left, right")
    length = max(len(example.input_ids) for example in examples)

    def padded(rows: list[Tensor], value: int) -> Tensor:
        gaps = [length - len(row) for row in rows]
        pads = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
        return torch.stack([F.pad(row, pad, value=value) for row, pad in zip(rows, pads, strict=True)])

    return Batch(
        input_ids=padded([example.input_ids for example in examples], pad_id),
        attention_mask=padded([torch.ones(len(example.input_ids)).long() for example in examples], 0),
        labels=padded([example.labels for example in examples], IGNORE),
        **_common(examples, pointer_start),
    )


def blank_batch(token: int, flat: bool) -> Batch:
    """A batch without examples: two text tokens from which nothing is learned.

    For a rank that has no examples left while others have: its loss and its gradients are zero.
    """
    input_ids = torch.full((1, 2), token)
    return Batch(
        ids=(),
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        labels=torch.full_like(input_ids, IGNORE),
        image_inputs={},
        segment_lengths=(2,) if flat else None,
        counts=LabelCounts(0, 0, 0),
    )


def _check(examples: Sequence[Encoded]) -> None:
    if not examples:
        raise ValueError("a batch needs at least one example")


def _common(examples: Sequence[Encoded], pointer_start: int | None) -> dict[str, Any]:
    """What does not depend on how the examples are laid out."""
    names = sorted({name for example in examples for name in example.image_inputs})
    return {
        "ids": tuple(example.id for example in examples),
        "image_inputs": {
            name: torch.cat(
                [example.image_inputs[name] for example in examples if name in example.image_inputs]
            )
            for name in names
        },
        "images": sum(len(example.patch_maps) for example in examples),
        "image_tokens": sum(len(image) for example in examples for image in example.patch_maps),
        "real_tokens": sum(len(example.input_ids) for example in examples),
        "counts": None if pointer_start is None else LabelCounts.of(examples, pointer_start),
        "unseen": sum(len(example.unseen) for example in examples),
        "cut": sum(example.cut for example in examples),
    }
