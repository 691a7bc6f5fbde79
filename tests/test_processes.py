"""Work is spread over processes: results in order, an end at once, no second run of a script."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from v1lit.processes import WorkerDiedError, count_workers, ordered

pytestmark = pytest.mark.dependencies


def late_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def die(number: int) -> None:
    os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(ordered(late_first, range(30), workers)) == [n * n for n in range(30)]
    assert list(ordered(late_first, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_after_the_results_before_it(workers: int) -> None:
    results = ordered(fail_at_three, range(50), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_loop_that_is_left_early_does_not_wait_for_the_work() -> None:
    started = time.monotonic()
    results = ordered(time.sleep, [0, 600, 600, 600], 2)
    next(results)
    results.close()
    assert time.monotonic() - started < 300


def test_a_process_that_was_killed_is_told() -> None:
    with pytest.raises(WorkerDiedError, match="--workers"):
        list(ordered(die, range(4), 2))


def test_there_are_no_more_processes_than_tasks() -> None:
    assert [count_workers(8, 3), count_workers(2, 3), count_workers(5, 0)] == [3, 2, 1]
    assert count_workers(None, 10**6) >= 1
    with pytest.raises(ValueError, match="at least 1"):
        count_workers(0, 3)


def output_of(folder: Path, *lines: str) -> list[str]:
    """What a script prints that is run as users run theirs."""
    (folder / "script.py").write_text("\n".join(lines))
    command = [sys.executable, str(folder / "script.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.split()


def test_a_script_without_a_guard_may_start_processes_and_runs_once(tmp_path: Path) -> None:
    script = ("from v1lit.processes import ordered", "print('ran', sum(ordered(abs, range(10), 2)))")
    assert output_of(tmp_path, *script) == ["ran", "45"]


def test_processes_find_work_that_stands_in_the_script(tmp_path: Path) -> None:
    script = (
        "from v1lit.processes import ordered",
        "def double(n):",
        "    return 2 * n",
        "if __name__ == '__main__':",
        "    print(sum(ordered(double, range(10), 2)))",
    )
    assert output_of(tmp_path, *script) == ["90"]
