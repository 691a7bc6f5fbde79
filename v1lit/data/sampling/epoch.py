"""One epoch as one rank reads it: rows, slot by slot and step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.remaining import Rest, SlotState
from v1lit.data.sampling.rows import Indexed, Row, Substream

MakeRows = Callable[[Indexed, SlotState], Iterator[Row]]
"""How a slot's examples make rows: counted, filled or of similar length."""


@dataclass(frozen=True)
class Layout:
    """How a step's examples are divided: any two runs of one layout read the same in every step."""

    slots: int
    """Batches of an optimizer step: ranks x accumulated batches."""
    rows: str
    """Which examples make a row, in words."""


@dataclass(frozen=True)
class Progress:
    """How far an epoch has been read by all ranks together, at the end of an optimizer step."""

    epoch: int = 0
    steps: int = 0
    """Optimizer steps that were taken in the epoch,"""
    since: int = 0
    """of which so many before it was divided as it is now."""
    rest: Rest = field(default_factory=Rest)
    """What remained of the epoch when it was divided so."""
    layout: Layout | None = None
    slots: tuple[SlotState, ...] = ()
    """State of every slot, in the order of their numbers; none before the first step of the layout."""

    def divided(self, layout: Layout, positions: int | None) -> Progress:
        """The same for another layout: what no slot has given to a row remains, in its old order.

        positions: of an epoch, None where that is not known.
        """
        if layout == self.layout:
            return self
        rest = self.rest.after(self.slots, positions) if self.slots else self.rest
        return Progress(self.epoch, self.steps, self.steps, rest, layout)

    def advanced(self, slots: Sequence[SlotState]) -> Progress:
        """One step further, after which the slots are in these states."""
        return replace(self, steps=self.steps + 1, slots=tuple(slots))

    def with_slots(self, slots: Sequence[SlotState]) -> Progress:
        """The same with the states of the slots."""
        return replace(self, slots=tuple(slots))

    @property
    def examples_read(self) -> int:
        """Positions of the epoch that have been given to rows."""
        read = sum(slot.read - len(slot.waiting) for slot in self.slots)
        return self.rest.tail - len(self.rest.head) + read

    def state_of(self, slot: int) -> SlotState:
        """State of one slot."""
        return self.slots[slot] if self.slots else SlotState()


def rank_rows(
    sequence: GlobalSequence, progress: Progress, make_rows: MakeRows, *, rank: int, ranks: int
) -> Iterator[Row]:
    """The rows of a rank: of every step those of the slots `rank`, `ranks + rank`, `2 ranks + rank`, ...

    A slot that has come to its end gives empty rows until all slots of the rank have. `progress` is divided
    for the layout already.
    """
    assert progress.layout is not None
    slots = progress.layout.slots
    numbers = range(rank, slots, ranks)
    states = [progress.state_of(number) for number in numbers]
    streams = [
        make_rows(Substream(sequence, progress.epoch, progress.rest, number, slots), state)
        for number, state in zip(numbers, states, strict=True)
    ]
    while True:
        step = [next(stream, None) for stream in streams]
        if all(row is None for row in step):
            return
        for number, row in enumerate(step):
            if row is not None:
                states[number] = row.after
            yield row or Row((), states[number])


def steps_left(sequence: GlobalSequence, progress: Progress, size: int, drop: bool) -> int | None:
    """Optimizer steps that remain of an epoch with rows of `size` examples; None where it is not known.

    drop: whether a last step that is not full is left out. `progress` is divided for the layout already.
    """
    if sequence.positions is None:
        return None
    assert progress.layout is not None
    whole = progress.layout.slots * size
    length = progress.rest.length(sequence.positions)
    total = length // whole if drop else -(-length // whole)
    return max(0, total - (progress.steps - progress.since))
