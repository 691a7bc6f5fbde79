"""What of a model and of a step lies on one GPU: the strategy's arithmetic over the moments of a step.

The order of Lightning is meant: the gradients of the last step are held during the first forward pass of
the next one. What FSDP2 holds is taken from torch/distributed/fsdp/_fully_shard: a unit's weights are
gathered into one buffer and copied out of it; the backward pass gathers one unit ahead, and what was sent of
the unit before is kept until the next one sends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from v1lit.backbones.adapters.quantized import BYTES as PACKED
from v1lit.plan.moments import Level, Moment
from v1lit.plan.units import EMBEDDINGS, HEAD, NOTHING, REST, Size


@dataclass(frozen=True)
class Placement:
    """How a model is spread, and how many bytes a number takes where."""

    whole: bool
    """Whether every GPU holds the whole model."""
    buckets: bool
    """Whether gradients have copies in the buckets of DDP."""
    shards: int
    """GPUs that share one copy of the model; 1 where each has its own."""
    tensor: int
    """Of these, GPUs that compute the language layers together: each has a part, which the others share."""
    weight: int
    """Bytes of a weight that is kept, at least where it learns."""
    gathered: int
    """Bytes of a weight while its unit is gathered."""
    reduced: int
    """Bytes of a gradient while it is summed over GPUs."""
    moments: float
    """Bytes of optimizer state for a weight that learns."""
    accumulate: int
    """Micro-batches of a step."""
    reduce_every: bool = False
    """Whether gradients are summed over GPUs after every micro-batch."""
    frozen: int | None = None
    """Bytes of a weight that does not learn, where that is another type."""
    unpacked: float = 0.0
    """Bytes of the largest weight in 4 bits, for the product that it is needed in."""

    def kept(self, size: Size) -> float:
        """Bytes of weights of this size."""
        plain = size.all - size.learned - size.packed
        frozen = self.weight if self.frozen is None else self.frozen
        return size.learned * self.weight + plain * frozen + size.packed * PACKED


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at one moment."""

    weights: float
    moments: float
    gradients: float
    gathered: float
    """Units that are gathered, and buffers of what is sent; DDP's buckets."""
    copies: float
    """Weights in the type of the products, under autocast."""
    activations: float
    loss: float
    """Logits of a chunk of positions, and the gradients that the loss makes at once."""
    moment: str
    """When."""

    @property
    def total(self) -> float:
        return sum(getattr(self, kind) for kind in KINDS)


KINDS = tuple(field.name for field in fields(Memory) if field.name != "moment")


def fullest(moments: Sequence[Moment], units: Mapping[str, Size], placement: Placement) -> Memory:
    """The moment of a step at which a GPU holds most."""
    arithmetic = _Whole(units, placement) if placement.whole else _Sharded(units, placement)
    return max(_all(moments, arithmetic), key=lambda memory: memory.total)


def _all(moments: Sequence[Moment], arithmetic: _Whole) -> Iterator[Memory]:
    """What is held in every moment of the micro-batches that differ: the first, another, the last."""
    last = arithmetic.placement.accumulate - 1
    base = next(m.after.activations for m, after in pairwise(moments) if after.unit == HEAD)
    for micro_batch in sorted({0, min(1, last), last}):
        arithmetic.begin(micro_batch)
        for index, moment in enumerate(moments):
            nearest = _next_unit(moments, index)
            for held, gradients, gathered in arithmetic.during(moment, nearest):
                loss = max(0, held.activations - base) if moment.unit == HEAD else 0
                yield Memory(
                    weights=arithmetic.weights,
                    moments=arithmetic.moments,
                    gradients=gradients,
                    gathered=gathered,
                    copies=held.copies,
                    activations=held.activations - loss,
                    loss=loss,
                    moment=f"{moment.phase} pass, {moment.unit}",
                )


def _next_unit(moments: Sequence[Moment], index: int) -> str:
    """The unit that the backward pass gathers ahead."""
    found = (m.unit for m in moments[index + 1 :] if m.unit not in (moments[index].unit, REST))
    return next(found, "")


class _Whole:
    """Every GPU holds the whole model: one process, or DDP."""

    def __init__(self, units: Mapping[str, Size], placement: Placement) -> None:
        self.units, self.placement = units, placement
        self.learned = sum(unit.learned for unit in units.values())
        self.own = sum(self.share(name, unit.learned) for name, unit in units.items())
        """Numbers that learn of this GPU's share."""
        self.weights = sum(self.share(name, placement.kept(unit)) for name, unit in units.items())
        self.weights += placement.unpacked
        self.moments = self.own * placement.moments
        self.first = True
        self.made = 0

    def share(self, unit: str, numbers: float) -> float:
        """What this GPU keeps of this many numbers of a unit."""
        place = self.placement
        layer = unit.startswith("language layer")
        return numbers / place.shards * (place.tensor if layer else 1)

    def begin(self, micro_batch: int) -> None:
        """A micro-batch begins."""
        self.first, self.made = micro_batch == 0, 0

    def during(self, moment: Moment, nearest: str) -> Iterator[tuple[Level, float, float]]:
        """What is held, bytes of gradients, and bytes of buffers."""
        size = self.placement.weight
        buckets = self.learned * size * self.placement.buckets
        if moment.phase == "forward" or not self.first:
            yield moment.passing, self.learned * size, buckets
        else:
            yield moment.fullest, self.made * size + moment.fullest.gradients, buckets
            self.made += sum(moment.gradients.values())


class _Sharded(_Whole):
    """Every GPU holds a share of every unit, and gathers units one by one."""

    def begin(self, micro_batch: int) -> None:
        super().begin(micro_batch)
        place = self.placement
        self.last = micro_batch == place.accumulate - 1
        self.reduces = self.last or place.reduce_every
        self.waiting: dict[str, int] = {}
        """Numbers in gradients of units that are not through, beside layers."""
        self.sent = 0.0
        """Bytes of the gradients that were sent last."""
        self.through = 0
        """Numbers in gradients of layers that are through."""
        self.reduced = 0.0
        """This GPU's share of them."""

    def during(self, moment: Moment, nearest: str) -> Iterator[tuple[Level, float, float]]:
        place = self.placement
        whole = place.gathered
        root = self._size(REST) * whole
        own = self._size(moment.unit) * whole * (moment.unit != REST)
        sends = place.shards > 1
        if moment.phase == "forward":
            # Of the unit, its weights and the buffer they were gathered in; the head stays for the loss.
            shared = self.first or place.reduce_every
            gradients = self.own * place.weight if shared else self.learned * place.reduced
            yield moment.passing, gradients, root + own * (1 + sends)
            return
        ahead = self._size(nearest) * whole * sends
        for unit, numbers in moment.gradients.items():
            if unit != moment.unit or unit in (HEAD, REST, EMBEDDINGS):
                self.waiting[unit] = self.waiting.get(unit, 0) + numbers
        done = moment.gradients.get(moment.unit, 0) * (moment.unit != REST)
        held = self._held_gradients()
        yield moment.fullest, held + moment.fullest.gradients, root + own + ahead + self.sent
        sending = done * place.reduced * sends * self.reduces
        yield moment.after, held + done * whole, root + ahead + sending + self.sent * (not done)
        if done:
            self.through += done
            self.reduced += self.share(moment.unit, done)
            self.sent = sending
            self.waiting.pop(moment.unit, None)

    def _size(self, unit: str) -> int:
        return self.units.get(unit, NOTHING).all

    def _held_gradients(self) -> float:
        """Bytes of gradients of the units that are through, and of those that wait for the end."""
        place = self.placement
        if not self.reduces:
            before = 0 if self.first else self.learned
            return (before + self.through * self.first) * place.reduced
        reduced = self.reduced * place.weight + sum(self.waiting.values()) * place.gathered
        if self.first:
            return reduced
        if place.reduce_every:
            return reduced + (self.own - self.reduced) * place.weight
        return reduced + (self.learned - self.through) * place.reduced
