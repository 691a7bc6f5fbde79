"""How far a run has read its training data, and what of it a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from v1lit.data.encode.batch import Read
from v1lit.data.loading.ranks import Ranks
from v1lit.data.sampling.epoch import Layout, Progress
from v1lit.data.sampling.remaining import Rest, SlotState


class ReadingState:
    """Follows the batches that training has used, not those that were made ahead.

    What it says is the place behind the last whole optimizer step, or behind the epoch when that has ended:
    gradients that wait for further batches are not saved, so their batches are read again.
    """

    def __init__(self) -> None:
        self.begun = False
        """Whether training data have been asked for."""
        self._progress: Progress | None = None
        self._resumed: Progress | None = None
        self._own: list[SlotState] = []
        self._step: dict[int, SlotState] = {}

    def resume(self, progress: Progress) -> None:
        """Go on from there at the next `begin`."""
        self._resumed, self._progress = progress, None

    def begin(
        self, current_epoch: int, layout: Layout, positions: int | None, ranks: int, rank: int
    ) -> Progress:
        """Where the next epoch is begun: at its start, or where the run that is resumed has stopped.

        Lightning fetches the first batch before it restores its own counters, where the number of batches is
        unknown: then `current_epoch` is too small.
        """
        resumed, self._resumed, self.begun = self._resumed, None, True
        progress = Progress(current_epoch, layout=layout)
        if resumed is not None and resumed.epoch >= current_epoch:
            progress = resumed.divided(layout, positions)
        self._progress, self._step = progress, {}
        self._own = [progress.state_of(slot) for slot in range(rank, layout.slots, ranks)]
        return progress

    def used(self, read: Read, epoch_ends: bool) -> None:
        """Training has used a batch."""
        assert self._progress is not None
        assert isinstance(read.after, SlotState)
        self._step[read.slot] = read.after
        if epoch_ends:
            self._progress, self._own, self._step = Progress(read.epoch + 1), [], {}
        elif read.last:
            self._own = [self._step.get(slot, state) for slot, state in enumerate(self._own)]
            self._progress, self._step = self._progress.advanced(()), {}

    def of_all(self, ranks: Ranks) -> Progress | None:
        """The progress with the state of every slot; to be called on all ranks."""
        if self._progress is None:
            return self._resumed
        layout = self._progress.layout
        everyone = ranks.gather(self._own)
        if layout is None or not self._progress.steps - self._progress.since:
            return self._progress
        slots = [everyone[slot % ranks.number][slot // ranks.number] for slot in range(layout.slots)]
        return self._progress.with_slots(slots)


def progress_to_dict(progress: Progress) -> dict[str, Any]:
    """Plain numbers, texts and one or two tensors, each of which costs a tenth of a millisecond to save.

    `slots` int64: of every slot how much it has read, how many indices wait, and those. `head` int64, or an
    empty list.
    """
    slots = [number for slot in progress.slots for number in (slot.read, len(slot.waiting), *slot.waiting)]
    return {
        "epoch": progress.epoch,
        "steps": progress.steps,
        "since": progress.since,
        "layout": [] if progress.layout is None else [progress.layout.slots, progress.layout.rows],
        "slots": torch.tensor(slots, dtype=torch.int64),
        "head": torch.from_numpy(np.array(progress.rest.head)) if len(progress.rest.head) else [],
        "tail": progress.rest.tail,
    }


def progress_from_dict(state: Mapping[str, Any]) -> Progress:
    """The inverse of `progress_to_dict`."""
    numbers = state["slots"].tolist()
    slots, at = [], 0
    while at < len(numbers):
        read, waiting = numbers[at : at + 2]
        slots.append(SlotState(read, tuple(numbers[at + 2 : at + 2 + waiting])))
        at += 2 + waiting
    return Progress(
        epoch=int(state["epoch"]),
        steps=int(state["steps"]),
        since=int(state["since"]),
        rest=Rest(np.array(state["head"], dtype=np.int64), int(state["tail"])),
        layout=Layout(int(state["layout"][0]), str(state["layout"][1])) if state["layout"] else None,
        slots=tuple(slots),
    )


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In words, in what a checkpoint's data differ from those of this run; None if in nothing."""
    for name in now:
        if saved.get(name) != now[name]:
            return f"{name}: {_short(saved.get(name))} in the checkpoint, {_short(now[name])} now"
    return None


def _short(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def set_batches_done(checkpoint: dict[str, Any], done: int) -> None:
    """Put the number of batches of the current epoch that count as done into a checkpoint of Lightning's.

    Its counters stand apart by one where the checkpoint was saved between the end of a batch and the count of
    it; this difference is kept.
    """
    current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    shift = done - current["ready"]
    for name in ("ready", "started", "processed", "completed"):
        current[name] += shift
