"""How far a run has read its training data, and what of it a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from v1lit.data.encode.batch import ReadPosition
from v1lit.data.loading.ranks import Ranks
from v1lit.data.sampling.epoch import Progress, StepLayout
from v1lit.data.sampling.remaining import MicroBatchState, Remaining


class ReadingState:
    """Follows the batches that training has used, not those that were made ahead.

    What it says is where the last whole optimizer step ended, or the epoch when that has ended:
    gradients that wait for further batches are not saved, so their batches are read again.
    """

    def __init__(self) -> None:
        self.begun = False
        """Whether training data have been asked for."""
        self._progress: Progress | None = None
        self._resumed: Progress | None = None
        self._own: list[MicroBatchState] = []
        self._step: dict[int, MicroBatchState] = {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Begin where a checkpoint's state was saved, at the next `begin`."""
        self._resumed, self._progress = progress_of(state), None

    def begin(self, current_epoch: int, layout: StepLayout, length: int | None, ranks: Ranks) -> Progress:
        """Where the next epoch is begun: at its start, or where the run that is resumed has stopped.

        Lightning fetches the first batch before it restores its own counters, where the number of batches is
        unknown: then `current_epoch` is too small.

        length: examples of an epoch, None where that is not known.
        """
        resumed, self._resumed, self.begun = self._resumed, None, True
        progress = Progress(current_epoch, layout=layout)
        if resumed is not None and resumed.epoch >= current_epoch:
            progress = resumed.divided(layout, length)
        self._progress, self._step = progress, {}
        self._own = progress.states_of(ranks.own, ranks.size)
        return progress

    def used(self, read: ReadPosition, epoch_ends: bool) -> None:
        """Training has used a batch."""
        assert self._progress is not None
        if isinstance(read.after, MicroBatchState):
            self._step[read.micro_batch] = read.after
        if epoch_ends:
            self._progress, self._own, self._step = Progress(read.epoch + 1), [], {}
        elif read.last:
            self._own = [self._step.get(micro_batch, state) for micro_batch, state in enumerate(self._own)]
            self._progress, self._step = self._progress.advanced(()), {}

    def of_all(self, ranks: Ranks) -> Progress | None:
        """The progress with the state of every micro-batch; to be called on all ranks."""
        if self._progress is None:
            return self._resumed
        layout = self._progress.layout
        everyone = ranks.gather(self._own)
        if layout is None or not self._progress.steps - self._progress.since:
            return self._progress
        micro_batches = range(layout.micro_batches)
        states = (everyone[index % ranks.size][index // ranks.size] for index in micro_batches)
        return replace(self._progress, states=tuple(states))

    def saved(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint keeps, empty where there is nothing yet; to be called on all ranks."""
        progress = self.of_all(ranks)
        return {} if progress is None else progress_to_dict(progress)


def progress_of(state: Mapping[str, Any]) -> Progress:
    """How far a checkpoint has come; that of a stream was made between two epochs."""
    return progress_from_dict(state) if "slots" in state else Progress(int(state["epoch"]))


def progress_to_dict(progress: Progress) -> dict[str, Any]:
    """Plain numbers, texts and one or two tensors, each of which costs a tenth of a millisecond to save.

    `slots` int64: of every micro-batch of a step how much it has read, how many indices wait, and those.
    `head` int64, or an empty list.
    """
    states = [
        number for state in progress.states for number in (state.read, len(state.waiting), *state.waiting)
    ]
    return {
        "epoch": progress.epoch,
        "steps": progress.steps,
        "since": progress.since,
        "layout": [] if progress.layout is None else [progress.layout.micro_batches, progress.layout.rows],
        "slots": torch.tensor(states, dtype=torch.int64),
        "head": torch.from_numpy(np.array(progress.remaining.head)) if len(progress.remaining.head) else [],
        "tail": progress.remaining.tail,
    }


def progress_from_dict(state: Mapping[str, Any]) -> Progress:
    """The inverse of `progress_to_dict`."""
    numbers = state["slots"].tolist()
    states, at = [], 0
    while at < len(numbers):
        read, waiting = numbers[at : at + 2]
        states.append(MicroBatchState(read, tuple(numbers[at + 2 : at + 2 + waiting])))
        at += 2 + waiting
    return Progress(
        epoch=int(state["epoch"]),
        steps=int(state["steps"]),
        since=int(state["since"]),
        remaining=Remaining(np.array(state["head"], dtype=np.int64), int(state["tail"])),
        layout=StepLayout(int(state["layout"][0]), str(state["layout"][1])) if state["layout"] else None,
        states=tuple(states),
    )


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How a checkpoint's data differ from those of this run, in words; None if they do not."""
    for name in now:
        if saved.get(name) != now[name]:
            return f"{name}: {_short(saved.get(name))} in the checkpoint, {_short(now[name])} now"
    return None


def _short(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)
