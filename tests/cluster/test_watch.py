"""A rank that is lost, or the way to it, ends the others, whatever they wait for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.threaded_ranks import on_ranks, places

from v1lit.cluster.lookout import Stand
from v1lit.cluster.meeting import Meeting, meet
from v1lit.cluster.watch import Watch

pytestmark = pytest.mark.timeout(60)


class Told:
    """Takes what a watch tells of ranks that are lost."""

    def __init__(self) -> None:
        self.text, self._came = "", threading.Event()

    def __call__(self, text: str) -> None:
        self.text = self.text or text
        self._came.set()

    def wait(self) -> str:
        assert self._came.wait(30), "nobody was told"
        return self.text


def watch(meeting: Any, told: Told) -> Watch:
    return Watch(meeting, after=30, lost_after=0.5, say=lambda line: None, lose=told)


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[Meeting]:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return on_ranks(lambda place: meet(place, 20), places(3))


def test_a_rank_without_signs_of_life_is_told_to_all_that_are_left(meetings: list[Meeting]) -> None:
    meetings[1].store.set("stand/1", Stand().as_json())  # one sign, and no more
    told = Told(), Told()
    watches = [watch(meetings[0], told[0]), watch(meetings[2], told[1])]
    for one in watches:
        one.start()
    expected = "no sign of life from rank 1 (host-b) for 0.5 s (run.lost_after): lost, or the way there"
    assert [one.wait() for one in told] == [expected, expected]
    for one in watches:
        one.stop()


def test_a_rank_that_has_come_to_its_end_is_not_lost(meetings: list[Meeting]) -> None:
    meetings[1].store.set("stand/1", Stand(ended=True).as_json())
    meetings[2].store.set("stand/2", Stand().as_json())
    told = Told()
    one = watch(meetings[0], told)
    one.start()
    assert told.wait().startswith("no sign of life from rank 2 (")
    one.stop()


def test_a_store_that_neither_answers_nor_refuses_is_lost_with_rank_0() -> None:
    """As where a link is cut."""
    never = threading.Event()
    place = SimpleNamespace(rank=1, size=2, address="10.0.0.1", port=29500, name="rank 1 (b)")
    store = SimpleNamespace(place=place, set=lambda *of: None, get=lambda key: never.wait())
    store.again = lambda: store
    meeting = SimpleNamespace(store=store, place=place, name=lambda rank: f"rank {rank} (a)")
    told = Told()
    one = watch(meeting, told)
    one.start()
    assert told.wait().startswith(
        "rank 0 (a) is lost, or the way to it: nothing has answered at 10.0.0.1:29500 for "
    )
    never.set()
    one.stop()
