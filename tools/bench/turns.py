"""Steps of several generations in turn, A B A B ..., each timed: a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

Generation = Callable[[BaseStreamer], object]
"""A whole generation, which tells the streamer of its tokens; all that take turns have as many."""


class Turn(BaseStreamer):
    """Hands over to the next generation whenever its own has chosen a token, and notes what that took."""

    def __init__(self, mine: threading.Semaphore, next_one: threading.Semaphore) -> None:
        self.mine, self.next_one = mine, next_one
        self.taken: list[float] = []
        """Seconds of the processor from token to token; the first ones are of the call and the prefill."""
        self._begun = 0.0

    def run(self, generation: Generation) -> None:
        """Wait for the first turn, and generate."""
        self.mine.acquire()
        self._begun = time.thread_time()
        try:
            generation(self)
        finally:
            self.next_one.release()

    def put(self, value: Any) -> None:
        self.taken.append(time.thread_time() - self._begun)
        self.next_one.release()
        self.mine.acquire()
        self._begun = time.thread_time()

    def end(self) -> None:
        pass


def steps_in_turn(works: Mapping[str, Generation], repeats: int) -> dict[str, list[float]]:
    """Seconds of the processor of every decoding step, by name.

    Torch must compute with one thread: what others of its threads do is not counted.
    Raises RuntimeError where a generation has failed.
    """
    assert torch.get_num_threads() == 1, "times of one thread are measured"
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, taken in _once(works).items():
            found[name] += taken[2:]  # the prompt is told of, then the token of the prefill
    return found


def _once(works: Mapping[str, Generation]) -> dict[str, list[float]]:
    ring = [threading.Semaphore(0) for _ in works]
    turns = {name: Turn(ring[number], ring[(number + 1) % len(ring)]) for number, name in enumerate(works)}
    threads = [threading.Thread(target=turns[name].run, args=(work,)) for name, work in works.items()]
    for thread in threads:
        thread.start()
    ring[0].release()
    for thread in threads:
        thread.join()
    told = {len(turn.taken) for turn in turns.values()}
    if len(told) > 1 or min(told) < 3:
        raise RuntimeError(f"generations that take turns told of {sorted(told)} tokens; one may have failed")
    return {name: turn.taken for name, turn in turns.items()}


def ratio(found: Mapping[str, list[float]], one: str, other: str) -> float:
    """Of the medians."""
    return statistics.median(found[one]) / statistics.median(found[other])
