"""Whether a model computes the same for packed examples as for each alone, measured on the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.data.encode.encoding import Encoded
from v1lit.pointer.borrow import borrowed
from v1lit.pointer.model import PointAndCopyModel

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference that rounding explains: kernels of other shapes add in another order."""


@dataclass(frozen=True)
class PackedExample:
    """One example on its own and among the others."""

    id: str
    tokens: int
    images: int
    alone: float
    """Summed loss on its own row, through the backbone's stock attention."""
    packed: float
    """Its share of the summed loss of the packed row."""
    leak: float
    """Largest change of its losses when all the other examples are replaced; 0 where nothing leaks."""

    @property
    def difference(self) -> float:
        """Relative difference of the two losses."""
        return abs(self.packed - self.alone) / max(abs(self.alone), 1e-12)


@dataclass(frozen=True)
class PackingCheck:
    """What came out, and what is allowed."""

    examples: tuple[PackedExample, ...]
    gradient: float
    """Largest difference of a parameter's gradients, relative to the largest gradient of that parameter, or
    to a thousandth of the largest of all."""
    parameter: str
    """Name of that parameter."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether nothing leaks and what differs is no more than rounding."""
        worst = max(example.difference for example in self.examples)
        leak = max(example.leak for example in self.examples)
        return leak == 0.0 and worst <= self.tolerance and self.gradient <= self.tolerance


def check_packing(
    model: PointAndCopyModel, examples: Sequence[Encoded], pad_id: int, dtype: torch.dtype = torch.float32
) -> PackingCheck:
    """Compare losses and gradients of `examples` packed into one row with those of each alone.

    dtype: of the products (under autocast, autocast's), which decides what rounding explains.
    The model is left as it was, gradients included. Needs at least two examples.
    Raises ValueError for fewer, and for a backbone that cannot pack.
    """
    if len(examples) < 2:
        raise ValueError(f"comparing packed examples needs at least two, given {len(examples)}")
    device = model.device
    packed = flatten(examples).to(device)
    with borrowed(model), _without_gradients(model):
        alone = [_losses(model, collate([example], pad_id).to(device)) for example in examples]
        together = _losses(model, packed).split([len(losses) for losses in alone])
        leaks = _leaks(model, packed, together)
        gradient, parameter = _gradient_difference(model, packed, examples, pad_id)
    return PackingCheck(
        tuple(
            PackedExample(e.id, len(e.input_ids), len(e.patch_maps), a.sum().item(), t.sum().item(), leak)
            for e, a, t, leak in zip(examples, alone, together, leaks, strict=True)
        ),
        gradient,
        parameter,
        TOLERANCE[dtype],
    )


@contextmanager
def _without_gradients(model: PointAndCopyModel) -> Iterator[None]:
    """Inside, no parameter has a gradient; afterwards each has its own again."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _losses(model: PointAndCopyModel, batch: Batch) -> Tensor:
    """Loss of every supervised position, `[positions]`, in order."""
    with torch.no_grad():
        return _forward(model, batch, reduction="none")


def _forward(model: PointAndCopyModel, batch: Batch, reduction: str) -> Tensor:
    loss: Tensor = model(**batch.model_inputs, reduction=reduction).loss
    return loss


def _leaks(model: PointAndCopyModel, packed: Batch, together: Sequence[Tensor]) -> list[float]:
    """For every example, the largest change of its losses when the text of all others is replaced.

    The shapes stay, and with them the order in which kernels add: without a leak the change is exactly zero.
    """
    assert packed.segment_lengths is not None
    lengths = list(packed.segment_lengths)
    is_image = packed.input_ids == model.config.image_token_id
    # Some backbones count images by the tokens beside them.
    beside_image = is_image.roll(-1, dims=1) | is_image.roll(1, dims=1)
    is_text = (packed.input_ids < model.config.pointer_start) & ~is_image & ~beside_image
    # A text token of the row itself means nothing special to the backbone, as an image's would.
    other_text = torch.where(is_text, packed.input_ids[is_text][0], packed.input_ids)
    leaks = []
    for index, own in enumerate(together):
        kept = list(packed.input_ids.split(lengths, dim=1))
        changed = list(other_text.split(lengths, dim=1))
        changed[index] = kept[index]
        # Labels stay: the losses of the others change, those of this one must not.
        losses = _losses(model, replace(packed, input_ids=torch.cat(changed, dim=1)))
        mine = losses.split(list(map(len, together)))[index]
        leaks.append((mine - own).abs().max().item() if len(own) else 0.0)
    return leaks


def _gradient_difference(
    model: PointAndCopyModel, packed: Batch, examples: Sequence[Encoded], pad_id: int
) -> tuple[float, str]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _forward(model, packed, reduction="sum").backward()
    ours = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for example in examples:
        _forward(model, collate([example], pad_id).to(model.device), reduction="sum").backward()
    largest = max((p.grad.abs().max().item() for p in trained.values() if p.grad is not None), default=0.0)
    worst, name = 0.0, "none"
    for key, parameter in trained.items():
        if parameter.grad is None or key not in ours:
            continue
        # Far below the largest gradient of all there is only rounding: biases of keys shift all scores alike.
        scale = max(parameter.grad.abs().max().item(), 1e-3 * largest)
        difference = (ours[key] - parameter.grad).abs().max().item() / max(scale, 1e-30)
        if difference > worst:
            worst, name = difference, key
    return worst, name
