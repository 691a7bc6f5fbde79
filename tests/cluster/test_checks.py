"""Ranks that are not of one kind do not begin; all of them end, and one says everything."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.threaded_ranks import on_ranks, places

from v1lit.cluster import reach
from v1lit.cluster.checks import check_facts, report
from v1lit.cluster.facts import Facts, versions
from v1lit.cluster.meeting import Meeting, RanksDiffer, meet
from v1lit.cluster.reach import reachable, unreachable
from v1lit.cluster.store import Place

pytestmark = pytest.mark.timeout(60)


def checked(recipes: list[dict[str, str]], **others: Any) -> tuple[list[Any], list[str]]:
    """What `report` did on ranks with these recipes, and what was said."""
    said: list[str] = []
    kept: list[Meeting] = []  # of rank 0 the store

    def act(place: Place) -> Any:
        with reachable() as port:
            meeting = meet(place, 20, said.append, port)
            kept.append(meeting)
            facts = Facts(versions(), recipes[place.rank], **others)
            report(meeting, check_facts(meeting, facts), said.append)

    return on_ranks(act, places(len(recipes))), said


def test_ranks_of_one_kind_begin() -> None:
    assert checked([{"seed": "1"}] * 3) == ([None] * 3, [])


def test_another_recipe_on_one_rank_ends_all_of_them_and_is_told_by_rank_0() -> None:
    errors, said = checked([{"seed": "1"}, {"seed": "1"}, {"seed": "2"}])
    assert all(isinstance(error, RanksDiffer) for error in errors)
    assert str(errors[0]) == "seed is 1 on ranks 0-1 (host-a, host-b), but 2 on rank 2 (host-a)"
    assert str(errors[1]) == str(errors[2]) == "the ranks do not fit together; rank 0 says in what"
    assert said == []


def test_several_differences_are_told_together() -> None:
    errors, said = checked([{"seed": "1", "lr": "1"}, {"seed": "2", "lr": "2"}])
    assert "in 2 ways" in str(errors[0])
    assert said == [
        "differs: seed is 1 on rank 0 (host-a), but 2 on rank 1 (host-b)",
        "differs: lr is 1 on rank 0 (host-a), but 2 on rank 1 (host-b)",
    ]


def test_a_machine_that_takes_no_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "TIMEOUT", 1.0)
    kept: list[Meeting] = []

    def act(place: Place) -> list[str]:
        with reachable() as port:
            meeting = meet(place, 20, print, port if place.rank == 0 else 1)
            kept.append(meeting)
            found = unreachable(meeting)
            meeting.store.set(f"done/{place.rank}", 1)
            meeting.store.wait_for_all("done", 20)
            return found

    first, second, third = on_ranks(act, places(3))
    assert len(first) == 1
    assert first[0].startswith("rank 1 (host-b) at 127.0.0.1 (Connection refused)")
    assert second == third == []  # rank 2 is on the machine of rank 0, which asks for it


def test_a_clock_that_differs_is_measured_against_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    from v1lit.cluster import checks

    class Clock:
        """Rank 1's is an hour ahead; it looks at it after rank 0 has."""

        def __init__(self) -> None:
            self.looks = 0

        def time(self) -> float:
            self.looks += 1
            return 1e9 if self.looks == 1 else 1e9 + 3600.0

    clock, kept = Clock(), list[Meeting]()
    monkeypatch.setattr(checks.time, "time", clock.time)

    def act(place: Place) -> Any:
        meeting = meet(place, 20)
        kept.append(meeting)
        return check_facts(meeting, Facts())

    for found in on_ranks(act, places(2, "a")):
        assert found.errors == []
        assert found.warnings[0].startswith("the clock of rank 1 (host-a) is 3600.0 s ahead of rank 0's")
