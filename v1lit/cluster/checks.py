"""The checks of all ranks before anything heavy starts: what they are is compared, what they can is tried."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import distributed as dist

from v1lit.cluster.compare import Findings, compare
from v1lit.cluster.facts import Facts
from v1lit.cluster.meeting import Meeting, RanksDiffer
from v1lit.cluster.reach import unreachable
from v1lit.cluster.store import PAUSE, RanksMissing

ALL_REDUCE_BYTES = 64 * 2**20
"""Of the float32 tensor that is added up over all ranks."""
ANSWERS = 60.0
"""Seconds in which ranks that are here must answer."""
READ = 5.0
"""Seconds that rank 0 waits, before it ends, for the others to have read what it says."""


def check_facts(
    meeting: Meeting, facts: Facts, parameters: int | None = None, key: str = "facts"
) -> Findings:
    """Compare this rank's facts with those of all others; the same findings on every rank.

    Args:
        meeting: of all ranks.
        facts: of this one.
        parameters: of the model, for the size of a checkpoint; None where it is not known.
        key: a name for this comparison.
    """
    store, place = meeting.store, meeting.place
    if key == "facts":
        facts = replace(facts, skew=_skew(meeting), unreachable=unreachable(meeting))
    store.set(f"{key}/{place.rank}", facts.as_json())
    if place.rank == 0:
        everyone = [Facts(**values) for values in store.wait_for_all(key, ANSWERS)]
        found = compare(everyone, meeting.names, parameters)
        store.set(f"{key}/found", [found.errors, found.warnings])
        return found
    return Findings(*store.wait_for(f"{key}/found", 2 * ANSWERS))


def _skew(meeting: Meeting) -> float:
    """Seconds by which this clock is ahead of rank 0's, to about 0.1 s: all look at theirs when it calls."""
    store = meeting.store
    store.set(f"listening/{meeting.place.rank}", True)
    if meeting.place.rank == 0:
        store.wait_for_all("listening", ANSWERS)
        store.set("clock", time.time())
        return 0.0
    then = float(store.wait_for("clock", 2 * ANSWERS))
    return time.time() - then


def report(meeting: Meeting, found: Findings, say: Callable[[str], None]) -> None:
    """Let rank 0 tell what was found; raises RanksDiffer, on all ranks, where a run cannot begin."""
    errors = found.errors
    if meeting.place.rank == 0:
        for line in found.warnings:
            say(f"warning: {line}")
        for line in errors if len(errors) > 1 else []:
            say(f"differs: {line}")
    if not errors:
        return
    _read_by_all(meeting)
    if meeting.place.rank > 0:
        raise RanksDiffer("the ranks do not fit together; rank 0 says in what")
    if len(errors) == 1:
        raise RanksDiffer(errors[0])
    raise RanksDiffer(f"the ranks do not fit together, in {len(errors)} ways: see the lines above")


def _read_by_all(meeting: Meeting) -> None:
    """Wait a little, as rank 0, until all have read it: the store may end with this process."""
    meeting.store.set(f"read/{meeting.place.rank}", True)
    if meeting.place.rank == 0:
        try:
            meeting.store.wait_for_all("read", READ)
        except RanksMissing:
            return


@dataclass(frozen=True)
class AllReduce:
    """How long it took to add up `ALL_REDUCE_BYTES` over all ranks."""

    seconds: float
    ranks: int

    @property
    def line(self) -> str:
        """What to print: the time, and the bytes per second that each rank sends."""
        rate = 2 * (self.ranks - 1) / self.ranks * ALL_REDUCE_BYTES / self.seconds
        return (
            f"all-reduce of {ALL_REDUCE_BYTES / 2**20:g} MiB over {self.ranks} ranks: "
            f"{self.seconds * 1e3:.0f} ms, {rate / 1e9:.2f} GB/s per rank"
        )


def try_all_reduce(meeting: Meeting, device: torch.device, seconds: float) -> AllReduce:
    """Add up a tensor over all ranks twice, and time the second; needs the process group.

    Rank 0 returns the time of the slowest rank, the others their own.

    The bandwidth is that of a ring: every rank sends 2 (n - 1) / n of the tensor.

    Raises RanksMissing if it does not end in time, RanksDiffer if the sum is wrong.
    """
    place, key = meeting.place, "reduced"
    expected = place.size * (place.size + 1) / 2
    took = 0.0
    for _ in range(2):
        tensor = torch.full((ALL_REDUCE_BYTES // 4,), place.rank + 1.0, device=device)
        begin = time.perf_counter()
        work = dist.all_reduce(tensor, async_op=True)
        end = time.monotonic() + seconds
        while not work.is_completed():
            if time.monotonic() > end:
                raise RanksMissing(_stuck(meeting, key, seconds))
            time.sleep(PAUSE / 50)
        work.wait()
        took = time.perf_counter() - begin
        if not bool((tensor == expected).all()):
            low, high = tensor.min().item(), tensor.max().item()
            raise RanksDiffer(
                f"an all-reduce on {meeting.name(place.rank)} came out as {low:g} to {high:g} instead of "
                f"{expected:g}: look at the machine's memory and network"
            )
    meeting.store.set(f"{key}/{place.rank}", took)
    if place.rank == 0:  # the others do not ask the store again: it may end with this process
        took = max(meeting.store.wait_for_all(key, seconds))
    return AllReduce(took, place.size)


def _stuck(meeting: Meeting, key: str, seconds: float) -> str:
    values = meeting.store.of_ranks(key, range(meeting.place.size))
    without = [rank for rank, value in enumerate(values) if value is None]
    return (
        f"an all-reduce over all ranks has not ended within {seconds:g} s; not through: "
        f"{meeting.names(without)}\n"
        "look at the interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), the firewall, and NCCL_DEBUG=INFO"
    )


@contextmanager
def ends_within(seconds: float, what: str, meeting: Meeting) -> Iterator[None]:
    """End the process, with a message, if what is done inside takes longer.

    For waits inside of torch.distributed, which no signal ends. Says which ranks are not through.
    """
    key, rank = what.replace(" ", "_"), meeting.place.rank
    done, store = threading.Event(), meeting.store.again()

    def watch() -> None:
        if done.wait(seconds):
            return
        try:
            values = store.of_ranks(key, range(meeting.place.size))
            late = meeting.names([other for other, value in enumerate(values) if value is None])
        except Exception:  # the store's machine is gone
            late = "and the store of rank 0 does not answer"
        sys.stderr.write(
            f"error: {what} has not ended within {seconds:g} s on {meeting.name(rank)}; not through: {late}\n"
            "look at the interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME) and the firewall\n"
        )
        sys.stderr.flush()
        os._exit(1)

    thread = threading.Thread(target=watch, name="v1lit-time-limit", daemon=True)
    thread.start()
    try:
        yield
        meeting.store.set(f"{key}/{rank}", True)
    finally:
        done.set()
        thread.join()
