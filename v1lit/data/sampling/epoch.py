"""One epoch as one rank reads it: rows, micro-batch by micro-batch and step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.remaining import MicroBatchState, Remaining
from v1lit.data.sampling.rows import MicroBatchPlan, MicroBatchStream, Substream

MakeRows = Callable[[MicroBatchStream, MicroBatchState], Iterator[MicroBatchPlan]]
"""How a micro-batch's examples make rows: counted, filled or of similar length."""


@dataclass(frozen=True)
class StepLayout:
    """How a step's examples are divided: any two runs of one layout read the same in every step."""

    micro_batches: int
    """Batches of an optimizer step: ranks x accumulated batches."""
    rows: str
    """Which examples make a row, in words."""


@dataclass(frozen=True)
class Progress:
    """How far an epoch has been read by all ranks together, at the end of an optimizer step."""

    epoch: int = 0
    steps: int = 0
    """Optimizer steps that were taken in the epoch."""
    since: int = 0
    """Those of `steps` that were taken before the epoch was divided as it is now."""
    remaining: Remaining = field(default_factory=Remaining)
    """What remained of the epoch when it was divided as it is now."""
    layout: StepLayout | None = None
    states: tuple[MicroBatchState, ...] = ()
    """State of every micro-batch, in order; none before the first step of the layout."""

    def divided(self, layout: StepLayout, epoch_length: int | None) -> Progress:
        """The same for another layout: what no micro-batch has put into a row remains, in its old order.

        `epoch_length` is None where it is not known.
        """
        if layout == self.layout:
            return self
        remaining = self.remaining.after(self.states, epoch_length) if self.states else self.remaining
        return Progress(self.epoch, self.steps, self.steps, remaining, layout)

    def advanced(self, states: Sequence[MicroBatchState]) -> Progress:
        """One step further, after which its micro-batches are in these states."""
        return replace(self, steps=self.steps + 1, states=tuple(states))

    @property
    def examples_read(self) -> int:
        """Indices of the epoch that have been put into rows."""
        read = sum(state.read - len(state.waiting) for state in self.states)
        return self.remaining.tail - len(self.remaining.head) + read

    def states_of(self, rank: int, ranks: int) -> list[MicroBatchState]:
        """States of the micro-batches of a rank: `rank`, `ranks + rank` and so on."""
        assert self.layout is not None
        states = self.states or (MicroBatchState(),) * self.layout.micro_batches
        return list(states[rank::ranks])


def rank_rows(
    sequence: GlobalSequence, progress: Progress, make_rows: MakeRows, *, rank: int, ranks: int
) -> Iterator[MicroBatchPlan]:
    """The rows of a rank: of every step those of the micro-batches `rank`, `ranks + rank` and so on.

    A micro-batch that has come to its end has empty rows until all those of the rank have. `progress` is
    divided for the layout already.
    """
    assert progress.layout is not None
    micro_batches = progress.layout.micro_batches
    states = progress.states_of(rank, ranks)
    streams = [
        make_rows(Substream(sequence, progress.epoch, progress.remaining, micro_batch, micro_batches), state)
        for micro_batch, state in zip(range(rank, micro_batches, ranks), states, strict=True)
    ]
    while True:
        step = [next(stream, None) for stream in streams]
        if all(row is None for row in step):
            return
        for place, row in enumerate(step):
            if row is not None:
                states[place] = row.after
            yield row or MicroBatchPlan((), states[place])


def steps_left(sequence: GlobalSequence, progress: Progress, size: int, drop: bool) -> int | None:
    """Optimizer steps that remain of an epoch with rows of `size` examples; None where it is not known.

    `drop` says whether a last step that is not full is left out. `progress` is divided for the layout
    already.
    """
    if sequence.length is None:
        return None
    assert progress.layout is not None
    whole = progress.layout.micro_batches * size
    length = progress.remaining.length(sequence.length)
    total = length // whole if drop else -(-length // whole)
    return max(0, total - (progress.steps - progress.since))
