"""What takes too long is interrupted, and alarms that others have set survive."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from v1lit.data.loading.time_limit import TookTooLongError, time_limit


@pytest.fixture(autouse=True)
def own_alarm() -> Iterator[None]:
    """An alarm far off, as a test runner may set one."""
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    left, interval = signal.setitimer(signal.ITIMER_REAL, 5000)
    yield
    signal.setitimer(signal.ITIMER_REAL, left, interval)
    signal.signal(signal.SIGALRM, handler)


def test_a_block_that_runs_too_long_is_interrupted() -> None:
    with pytest.raises(TookTooLongError), time_limit(0.01):
        time.sleep(600)


def test_no_except_exception_takes_it() -> None:
    def library() -> None:
        try:
            time.sleep(600)
        except Exception as error:
            raise ValueError from error

    with pytest.raises(TookTooLongError), time_limit(0.01):
        library()


@pytest.mark.parametrize("fails", [False, True])
def test_handler_and_alarm_of_others_are_put_back(fails: bool) -> None:
    try:
        with time_limit(1000):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
    assert 1000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5000


def test_without_a_limit_or_outside_of_the_main_thread_there_is_none() -> None:
    def look() -> None:
        with time_limit(1e-6 if threading.current_thread() is not threading.main_thread() else None):
            seen.append(signal.getsignal(signal.SIGALRM))

    seen: list[object] = []
    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_IGN] * 2
