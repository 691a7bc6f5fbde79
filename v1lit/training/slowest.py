"""Which rank of an interval was the slowest, by what it did before it waited for others."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

SHARE = 0.2
"""Of an interval: a rank that waits for its own data longer than that is named."""
SHORTEST = 10.0
"""Seconds of an interval in which a rank may be named; in shorter ones a wait says little."""


class OwnTimes(NamedTuple):
    """Seconds of an interval that a rank spent on its own."""

    data: float
    """Waiting for its own data, and not for other ranks."""
    forward: float
    """From the beginning of a micro-batch until its backward pass, in which ranks wait for each other."""


class ForwardClock:
    """Adds up the seconds from the beginning of micro-batches until their backward pass.

    On a GPU by its own clock, which is read at the end of an interval only: no step waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._began: float | torch.cuda.Event | None = None
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """A micro-batch begins."""
        self._began = self._now()

    def end(self) -> None:
        """The backward pass of the micro-batch begins."""
        now, began = self._now(), self._began
        if isinstance(now, float) and isinstance(began, float):
            self._seconds += now - began
        elif isinstance(now, torch.cuda.Event) and isinstance(began, torch.cuda.Event):
            self._pairs.append((began, now))
        self._began = None

    def read(self) -> float:
        """The seconds since this was last read; the GPU's queue must be finished."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1e3
        self._seconds, self._pairs = 0.0, []
        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Slowest(NamedTuple):
    """The rank that took longest by itself in an interval."""

    rank: int
    lag: float
    """Seconds that it took more than the ranks' mean, as a share of the interval."""
    data_wait: float
    """Share of the interval in which it waited for its own data."""

    @classmethod
    def of(cls, own: Tensor, seconds: float) -> Slowest:
        """Of the table `[ranks, 2]` of `OwnTimes`, in an interval of this length, in seconds."""
        took = own.sum(1)
        rank = int(took.argmax())
        return cls(rank, float(took[rank] - took.mean()) / seconds, float(own[rank, 0]) / seconds)


class DataWaits:
    """Names the rank that waits longest for its own data, once until it is another one, or none.

    Args:
        hosts: of the ranks.
    """

    def __init__(self, hosts: list[str]) -> None:
        self.hosts = hosts
        self._named: int | None = None

    def line(self, waits: Tensor, seconds: float) -> str | None:
        """What is to be said of an interval of `seconds`, of which the ranks have waited `[ranks]`."""
        if len(self.hosts) == 1 or seconds < SHORTEST:
            return None
        rank, shares = int(waits.argmax()), waits / seconds
        if shares[rank] <= SHARE:
            self._named = None
            return None
        if rank == self._named:
            return None
        self._named = rank
        return (
            f"rank {rank} ({self.hosts[rank]}) has waited for its own data {float(shares[rank]):.0%} of the "
            f"last {seconds:.0f} s, and the others for it; the ranks' mean is {float(shares.mean()):.0%}"
        )
