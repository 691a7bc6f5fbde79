"""Encoded examples -> padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from v1lit.data.encoding import IGNORE, Encoded


@dataclass  # not frozen: Lightning's precision plugins write the converted tensors into a copy
class Batch:
    """Several examples, one per row, padded to the longest."""

    ids: tuple[str, ...]
    """Names of the examples, `[batch]`."""
    input_ids: Tensor
    """`[batch, tokens]`"""
    attention_mask: Tensor
    """`[batch, tokens]`, 1 where there is a token."""
    labels: Tensor
    """`[batch, tokens]`, -100 where nothing is learned."""
    image_inputs: dict[str, Tensor]
    """The backbone's image tensors for all images, rows in order."""
    position: tuple[int, int] = (0, 0)
    """Epoch, and number of the batch within it (from 0) on this rank."""
    unseen: int = 0
    """Regions that no image token sees."""
    cut: int = 0
    """Tokens cut to fit the length."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            labels=move(self.labels),
            image_inputs={name: move(tensor) for name, tensor in self.image_inputs.items()},
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for faster copies to a GPU."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            attention_mask=self.attention_mask.pin_memory(),
            labels=self.labels.pin_memory(),
            image_inputs={name: tensor.pin_memory() for name, tensor in self.image_inputs.items()},
        )

    def __len__(self) -> int:
        return len(self.ids)


def collate(examples: Sequence[Encoded], pad_id: int, side: Literal["left", "right"] = "right") -> Batch:
    """One row per example. Pad on the left for generation, on the right for training."""
    if not examples:
        raise ValueError("a batch needs at least one example")
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_id)
    labels = torch.full((len(examples), length), IGNORE)
    mask = torch.zeros(len(examples), length, dtype=torch.long)
    for row, example in enumerate(examples):
        count = len(example.input_ids)
        place = slice(length - count, length) if side == "left" else slice(0, count)
        input_ids[row, place] = example.input_ids
        labels[row, place] = example.labels
        mask[row, place] = 1
    names = {name for example in examples for name in example.image_inputs}
    return Batch(
        ids=tuple(example.id for example in examples),
        input_ids=input_ids,
        attention_mask=mask,
        labels=labels,
        image_inputs={
            name: torch.cat(
                [example.image_inputs[name] for example in examples if name in example.image_inputs]
            )
            for name in sorted(names)
        },
        unseen=sum(len(example.unseen) for example in examples),
        cut=sum(example.cut for example in examples),
    )
