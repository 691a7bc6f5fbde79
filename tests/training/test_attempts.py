"""Starts that a launcher repeats: when they are too many, and what is said of the first that failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from v1lit.training.attempts import (
    FOLDER,
    LAUNCH,
    MOST,
    NoProgressError,
    attempts,
    begin,
    end,
    note_failure,
)


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCH, "job-7")
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    monkeypatch.delenv(MOST, raising=False)


def start(folder: Path, step: int, number: int, rank: int = 0) -> None:
    """Begin the start of this number, which has a port of its own, as each has."""
    os.environ["MASTER_PORT"] = str(20000 + number)
    begin(folder, step, rank)


def test_a_fourth_start_from_the_same_step_is_refused_with_the_reason_of_the_first(tmp_path: Path) -> None:
    for number, reason in enumerate(("the disk melted", "the fan melted", "all melted")):
        start(tmp_path, 40, number)
        note_failure(tmp_path, 3, reason)
    with pytest.raises(NoProgressError) as error:
        start(tmp_path, 40, 3)
    assert str(error.value).startswith(
        "3 starts from step 40 failed without coming further; the first: the disk melted (rank 3 on "
    )
    assert error.value.exit_code == 3
    assert len(attempts(tmp_path)) == 3


def test_a_start_that_came_further_begins_the_count_anew(tmp_path: Path) -> None:
    for number, step in enumerate((0, 0, 40, 40)):
        start(tmp_path, step, number)
        note_failure(tmp_path, 0, "again")
    start(tmp_path, 80, 4)
    assert [attempt.step for attempt in attempts(tmp_path)] == [0, 0, 40, 40, 80]


def test_a_start_of_which_nobody_could_say_anything_has_failed_too(tmp_path: Path) -> None:
    """As when the power is cut."""
    for number in range(3):
        start(tmp_path, 0, number)
    with pytest.raises(NoProgressError, match="the first: nobody said why; whole machines"):
        start(tmp_path, 0, 3)


def test_starts_that_were_stopped_have_not_failed(tmp_path: Path) -> None:
    for number in range(5):
        start(tmp_path, 0, number)
        end(tmp_path, "stopped by SIGTERM before the first step")
    assert not any(attempt.failed for attempt in attempts(tmp_path))


def test_a_rank_that_was_stopped_because_another_died_does_not_hide_that(tmp_path: Path) -> None:
    start(tmp_path, 0, 0)
    end(tmp_path, "stopped by SIGTERM after step 3")
    note_failure(tmp_path, 1, "rank 1 was ended by SIGKILL")
    assert attempts(tmp_path)[0].failed


def test_all_ranks_of_a_start_find_the_same_whichever_is_first(tmp_path: Path) -> None:
    for number in range(2):
        start(tmp_path, 0, number)
        note_failure(tmp_path, 0, "again")
    start(tmp_path, 0, 2)
    start(tmp_path, 0, 2, rank=1)  # the third start has begun, and not failed
    note_failure(tmp_path, 0, "again")
    for rank in (1, 0):
        with pytest.raises(NoProgressError):
            start(tmp_path, 0, 3, rank)


def test_what_followed_from_it_is_not_the_reason(tmp_path: Path) -> None:
    start(tmp_path, 0, 0)
    for rank, reason, follows in ((0, "lost the others", True), (2, "out of memory", False)):
        note_failure(tmp_path, rank, reason, follows)
    note_failure(tmp_path, 2, "said twice")
    files = sorted((tmp_path / FOLDER / "0001").glob("rank-*.json"))
    for number, path in enumerate(sorted(files, key=lambda path: (path.name != "rank-0.json", path.name))):
        os.utime(path, (number, number))
    (attempt,) = attempts(tmp_path)
    assert len(attempt.failures) == 3
    assert "out of memory" in attempt.reason or "said twice" in attempt.reason
    assert "(rank 2 on " in attempt.reason


def test_another_launch_and_a_person_begin_without_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        start(tmp_path, 0, number)
    monkeypatch.delenv(LAUNCH)
    start(tmp_path, 0, 4)
    assert len(attempts(tmp_path)) == 3
    monkeypatch.setenv(LAUNCH, "job-8")
    start(tmp_path, 0, 5)
    assert len(attempts(tmp_path)) == 4


def test_more_may_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MOST, "5")
    for number in range(5):
        start(tmp_path, 0, number)
    with pytest.raises(NoProgressError, match="5 starts from step 0"):
        start(tmp_path, 0, 5)
