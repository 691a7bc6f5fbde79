"""Ranks meet before torch.distributed waits for them; who does not come is named, and Ctrl-C works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.threaded_ranks import free_port, on_ranks, places

from v1lit.cluster import meeting as module
from v1lit.cluster.meeting import Meeting, RanksDiffer, meet
from v1lit.cluster.store import Place, RanksMissing, RankStore, ranks_text

pytestmark = pytest.mark.timeout(60)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_ranks_that_come_know_each_other_and_their_machines() -> None:
    met = on_ranks(lambda place: meet(place, 20), places(4))
    assert all(isinstance(one, Meeting) for one in met), met
    assert [here.host for here in met[3].ranks] == ["host-a", "host-b", "host-a", "host-b"]
    assert met[2].machines == [0, 1]
    assert met[1].names([1, 2, 3]) == "ranks 1-3 (host-b, host-a)"


def test_missing_ranks_are_named_on_all_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    came, set_value = set[str](), RankStore.set

    class Clock:
        """Time passes once ranks 0 and 3 have come, and not before."""

        now = 0.0
        sleep = staticmethod(time.sleep)

        def monotonic(self) -> float:
            self.now += 100.0 * ({"here/0", "here/3"} <= came)
            return self.now

    def noted(store: RankStore, key: str, value: Any) -> None:
        set_value(store, key, value)
        came.add(key)

    monkeypatch.setattr(module, "time", Clock())
    monkeypatch.setattr(RankStore, "set", noted)
    everyone = places(5)
    for error in on_ranks(lambda place: meet(place, 60), [everyone[0], everyone[3]]):
        assert isinstance(error, RanksMissing), error
        assert "ranks 1-2, 4 of 5 did not come within 60 s" in str(error)
        assert "here: 2 on host-a, host-b" in str(error)


def test_where_rank_0_is_missing_its_address_is_named() -> None:
    (error,) = on_ranks(lambda place: meet(place, 0.5), places(2)[1:])
    assert isinstance(error, RanksMissing)
    assert "rank 0 is missing" in str(error)
    assert "MASTER_ADDR=127.0.0.1" in str(error)
    assert "rank 1 (host-b) has waited for 0.5 s" in str(error)


def test_two_nodes_that_are_both_the_same_rank_are_refused_on_both_and_on_the_others() -> None:
    everyone = places(3)
    twice = replace(everyone[1], host="host-c")
    errors = on_ranks(lambda place: meet(place, 20), [*everyone[:2], twice])
    assert all(isinstance(error, RanksDiffer) for error in errors), errors
    assert {str(error) for error in errors} == {str(errors[0])}
    assert "two processes are rank 1" in str(errors[0])
    assert "NODE_RANK" in str(errors[0])


def test_ranks_that_believe_in_other_numbers_of_ranks_are_refused_at_once() -> None:
    first, second = places(2)
    errors = on_ranks(lambda place: meet(place, 20), [first, replace(second, size=4)])
    assert all(isinstance(error, RanksDiffer) for error in errors), errors
    assert all("one of 4" in str(error) and "one of 2" in str(error) for error in errors)


def test_a_run_that_is_started_again_in_the_same_store_meets_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun serves one store for all starts; in a store of its own, nodes may count them unequally."""
    everyone = places(2)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    first = on_ranks(lambda place: meet(place, 20), everyone)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = on_ranks(lambda place: meet(place, 20), everyone)
    assert all(isinstance(one, Meeting) for one in again), again
    assert first[0].store.get("here/0") == again[0].store.get("here/0")


def test_nodes_that_restarted_unequally_often_meet_in_a_store_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that others made start again does not count it; the launcher has a new store for every start."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    first, second = places(2)
    serves = RankStore(first, 20)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    serves.set("said", "by the first")
    assert RankStore(second, 20).get("said") == "by the first"


@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_ends_a_rank_that_waits(rank: int) -> None:
    code = (
        "from v1lit.cluster.meeting import meet; from v1lit.cluster.store import Place; import sys\n"
        "print('begins', flush=True)\n"
        f"meet(Place({rank}, 2, '127.0.0.1', {free_port()}), 600)"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert process.returncode in (-signal.SIGINT, 130, 1)


def test_numbers_of_ranks_are_told_in_short() -> None:
    assert ranks_text([3]) == "rank 3"
    assert ranks_text([7, 0, 1, 2, 5, 6]) == "ranks 0-2, 5-7"


def test_rank_0_serves_the_store_unless_torchrun_does(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(0, 2, "node-1", 29500)
    assert place.serves
    assert not replace(place, rank=1).serves
    for name, value in (("USE_AGENT_STORE", "True"),):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert not place.serves
    assert replace(place, port=1).serves
