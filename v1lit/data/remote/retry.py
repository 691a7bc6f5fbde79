"""`Retry`: how often to try, how long to wait in between, and when to give up."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from v1lit.data.remote.error import ProblemError, RemoteError, as_problem, shown

_random = random.SystemRandom()  # The seeded generators belong to the training.
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How often a remote file is asked for, and how long that may take.

    Args:
        attempts: how many are made at most for one file, the first one included (data.stream.attempts).
        first_wait: seconds before the second attempt; doubled with every further one, up to
        longest_wait: seconds. The waits are drawn from the upper half of that, so that many readers spread.
        timeout: seconds without a byte after which an attempt has failed (data.stream.timeout).

    Raises ValueError for numbers that make no sense.
    """

    attempts: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"data.stream.attempts must be at least 1, given {self.attempts}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"data.stream.timeout must be above 0 seconds, given {self.timeout}")
        if not 0 <= self.first_wait <= self.longest_wait < math.inf:
            waits = f"first_wait={self.first_wait} and longest_wait={self.longest_wait}"
            raise ValueError(f"waits must be 0 seconds or more, the first not above the longest: {waits}")

    @property
    def patience(self) -> float:
        """The longest time in seconds in which all attempts may go by without a byte."""
        return self.attempts * self.timeout + sum(self._longest(n) for n in range(1, self.attempts))

    def wait(self, attempt: int) -> float:
        """Seconds to wait after the failure of attempt 1, 2, ..."""
        return self._longest(attempt) * _random.uniform(0.5, 1.0)

    def run(self, url: str, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it succeeds.

        Raises RemoteError where all attempts failed, one failed in a way that no other can mend, or the
        content was twice not the expected one.
        """
        tries = mismatches = 0
        while True:
            try:
                return attempt()
            except Exception as error:
                tries += 1
                mismatches += isinstance(error, ProblemError) and error.kind == "checksum"
                self.pause(url, tries, error, give_up=mismatches == 2)

    def pause(self, url: str, tries: int, error: Exception, give_up: bool = False) -> None:
        """Wait after the `tries`-th failed attempt, which ended in `error`, for the next one.

        Raises RemoteError where there is to be no other, and `error` itself where it is none of the file's.
        """
        problem = as_problem(error)
        if problem is None:
            raise error
        if give_up or problem.final or tries >= self.attempts:
            raise RemoteError(url, tries, problem.reason, problem.kind, problem.status) from error
        seconds = max(self.wait(tries), min(problem.wait, self.longest_wait))
        told = (shown(url), problem.reason, tries, self.attempts, seconds)
        log.info("%s: %s (attempt %d of %d, the next in %.1f s)", *told)
        time.sleep(seconds)

    def _longest(self, attempt: int) -> float:
        return min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))


DEFAULT_RETRY = Retry()
