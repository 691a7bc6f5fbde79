"""A rank that holds up the others is named after a while, with what it is at, and again when it moves."""

from __future__ import annotations

from dataclasses import replace

from v1lit.cluster.lookout import PHASES, Lookout, Stand

LOADING, DATA, FORWARD, BACKWARD, OPTIMIZER, VALIDATION, CHECKPOINT, END = PHASES


def lookout() -> Lookout:
    return Lookout(60, lambda rank: f"rank {rank} (host-{rank})")


def at(phase: str, batch: int = 8, step: int = 7, waits: bool = False, beat: int = 0) -> Stand:
    return Stand(batch, phase, 0, step, waits, beat)


def test_the_rank_that_others_wait_for_is_named_once_and_again_when_it_moves() -> None:
    look = lookout()
    late, waiting = at(DATA), at(DATA, waits=True)
    assert look.look(0, [late, waiting]) == []
    assert look.look(59, [replace(late, beat=1), replace(waiting, beat=1)]) == []
    said = look.look(61, [replace(late, beat=2), replace(waiting, beat=2)])
    assert said == ["rank 0 (host-0) is behind: for 61 s at step 7, waiting for data"]
    assert look.look(200, [replace(late, beat=3), replace(waiting, beat=3)]) == []
    said = look.look(230, [at(FORWARD, beat=4), replace(waiting, beat=4)])
    assert said == ["rank 0 (host-0) moves again, after 230 s at step 7, waiting for data"]


def test_it_is_named_for_every_phase_in_which_others_are_further() -> None:
    for phase, words in (
        (LOADING, "loading the weights"),
        (FORWARD, "forward"),
        (VALIDATION, "validation"),
        (CHECKPOINT, "writing a checkpoint"),
    ):
        look = lookout()
        further = at(phase, waits=True)
        look.look(0, [further, at(phase)])
        (line,) = look.look(70, [replace(further, beat=1), at(phase, beat=1)])
        assert line == f"rank 1 (host-1) is behind: for 70 s at step 7, {words}"


def test_ranks_that_move_are_never_named_however_far_behind() -> None:
    look = lookout()
    for turn in range(20):
        now = 50.0 * turn
        assert look.look(now, [at(DATA, batch=turn, beat=turn), at(DATA, batch=turn + 5, beat=turn)]) == []
    assert look.look(1000, [replace(at(VALIDATION, 30), part=1), at(VALIDATION, 30, waits=True)]) == []
    assert look.look(1050, [replace(at(VALIDATION, 30), part=2), at(VALIDATION, 30, waits=True)]) == []


def test_a_rank_that_waits_for_another_is_not_named_for_it() -> None:
    look = lookout()
    stands = [at(BACKWARD), at(DATA, waits=True), at(DATA)]
    look.look(0, stands)
    said = look.look(61, [replace(stand, beat=1) for stand in stands])
    assert [line.split(" (")[0] for line in said] == ["rank 2"]


def test_where_nobody_moves_and_nobody_is_behind_that_is_said_once() -> None:
    look = lookout()
    look.look(0, [at(BACKWARD), at(BACKWARD)])
    assert look.look(61, [at(BACKWARD, beat=1)] * 2) == [
        "no rank has moved for 61 s: all are at step 7, backward"
    ]
    assert look.look(120, [at(BACKWARD, beat=2)] * 2) == []


def test_a_rank_without_signs_of_life_is_told_from_one_that_is_slow() -> None:
    look = lookout()
    look.look(0, [at(FORWARD), at(BACKWARD)])
    (line,) = look.look(90, [at(FORWARD), at(BACKWARD, beat=1)])
    assert line == "no sign of life from rank 0 (host-0) for 90 s; it was at step 7, forward"


def test_who_is_behind_can_be_asked_at_any_time() -> None:
    look = lookout()
    look.look(0, [at(DATA), at(BACKWARD), None])
    look.look(2, [at(DATA, beat=1), at(BACKWARD, beat=1), None])
    assert look.who(3).split("; ") == [
        "rank 0 (host-0) is behind: for 3 s at step 7, waiting for data",
        "rank 2 (host-2) is behind: for 3 s at step 0, loading the weights",
    ]
    look.look(4, [at(BACKWARD), at(BACKWARD), at(BACKWARD)])
    assert look.who(4) == ""


def test_ranks_that_have_ended_are_not_looked_at() -> None:
    look = lookout()
    look.look(0, [at(END), at(DATA)])
    assert look.look(61, [replace(at(END), ended=True), replace(at(DATA), ended=True)]) == []
    assert look.look(500, [replace(at(END), ended=True), replace(at(DATA), ended=True)]) == []


def test_a_rank_without_signs_of_life_is_lost_and_with_it_those_that_are_silent_too() -> None:
    look = lookout()
    look.look(0, [at(DATA), at(DATA), at(DATA), at(DATA), replace(at(END), ended=True)])
    look.look(20, [at(DATA, beat=1), at(DATA, beat=1), None, None, None])
    look.look(90, [at(DATA, beat=2), None, None, None, None])
    assert look.lost(99, 100) == []
    assert look.lost(100, 100) == [1, 2, 3]
    look.look(101, [None, at(DATA, beat=3), None, None, None])
    assert look.lost(101, 100) == [2, 3]


def test_a_rank_that_is_lost_before_its_first_sign_of_life_is_lost_too() -> None:
    look = lookout()
    for now in (0, 50, 99):
        look.look(now, [at(FORWARD, beat=now), None])
    assert look.lost(99, 100) == []
    look.look(100, [at(FORWARD, beat=100), None])
    assert look.lost(100, 100) == [1]
