"""All ranks of a run come together before anything waits for them inside of torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from v1lit.cluster.store import PAUSE, Place, RanksMissing, RankStore, ranks_text
from v1lit.errors import MISTAKE

SAID_AFTER = 30.0
"""Seconds after which rank 0 says for whom it waits."""
GRACE = 2.0
"""Seconds more for the other ranks: what rank 0 says comes first, if it is there."""


class RanksDiffer(RuntimeError):  # noqa: N818 - it names a state, like FileNotFound
    """The ranks of a run are not of one kind: another size, version, recipe, data."""

    exit_code = MISTAKE


class Here(NamedTuple):
    """What a rank says of itself when it comes."""

    host: str
    address: str
    port: int
    """On which it can be reached, to try whether it can; 0 for none."""
    size: int
    """How many ranks it believes there are."""

    @property
    def machine(self) -> tuple[str, str]:
        return self.host, self.address


class Meeting:
    """Who is here, and the store in which they talk.

    Args:
        store: of all ranks.
        ranks: all of them.
    """

    def __init__(self, store: RankStore, ranks: list[Here]) -> None:
        self.store, self.ranks = store, ranks
        self.place: Place = store.place

    def name(self, rank: int) -> str:
        """A rank with its host."""
        return f"rank {rank} ({self.ranks[rank].host})"

    def names(self, ranks: list[int]) -> str:
        """Ranks with their hosts."""
        hosts = ", ".join(dict.fromkeys(self.ranks[rank].host for rank in sorted(ranks)))
        return f"{ranks_text(ranks)} ({hosts})"

    @property
    def machines(self) -> list[int]:
        """The first rank of every machine."""
        return list({here.machine: rank for rank, here in reversed(list(enumerate(self.ranks)))}.values())[
            ::-1
        ]


def meet(place: Place, seconds: float, say: Callable[[str], None] = print, port: int = 0) -> Meeting:
    """Wait until all ranks are here.

    Args:
        place: of this process.
        seconds: how long to wait.
        say: told by rank 0 for whom it waits, once.
        port: on which this process listens for `reach`.

    Raises RanksMissing with those who have not come in time, RanksDiffer where two came as the same rank or
    with another number of ranks.
    """
    store = RankStore(place, seconds)
    here = Here(place.host, store.own_address, port, place.size)
    if store.add(f"count/{place.rank}") > 1:
        other = store.get(f"here/{place.rank}")
        _refuse(store, RanksDiffer, _twice(place, other[0] if other else "another host"))
    store.set(f"here/{place.rank}", here)
    if place.rank == 0:
        _gather(store, seconds, say)
    else:
        _await_rank_0(store, seconds)
    return Meeting(store, [Here(*values) for values in store.of_ranks("here", range(place.size))])


def _gather(store: RankStore, seconds: float, say: Callable[[str], None]) -> None:
    """Wait, as rank 0, for all others, and tell them when all are here."""
    begin, size, told = time.monotonic(), store.place.size, False
    missing = list(range(size))
    while missing:
        _stop_if_refused(store)
        found = dict(zip(missing, store.of_ranks("here", missing), strict=True))
        for rank, values in found.items():
            if values is not None and Here(*values).size != size:
                _refuse(store, RanksDiffer, _other_size(store.place, rank, Here(*values)))
        missing = [rank for rank, values in found.items() if values is None]
        waited = time.monotonic() - begin
        if missing and waited > seconds:
            _refuse(store, RanksMissing, _who_is_missing(store, seconds))
        if missing and not told and waited > SAID_AFTER:
            told = True
            say(f"waiting for {ranks_text(missing)} of {size}, for up to {seconds:g} s")
        if missing:
            time.sleep(PAUSE if waited < SAID_AFTER else 10 * PAUSE)
    store.set("all_here", True)


def _await_rank_0(store: RankStore, seconds: float) -> None:
    """Wait, as another rank, for rank 0 to say that all are here: it alone asks for everyone."""
    begin = time.monotonic()
    while not store.get("all_here"):
        _stop_if_refused(store)
        first = store.get("here/0")
        if first is not None and Here(*first).size != store.place.size:
            _refuse(store, RanksDiffer, _other_size(store.place, 0, Here(*first)))
        if time.monotonic() - begin > seconds + GRACE:
            _refuse(store, RanksMissing, _who_is_missing(store, seconds))
        time.sleep(PAUSE)


def _refuse(store: RankStore, kind: type[RuntimeError], text: str) -> NoReturn:
    """Raise the error, on the other ranks too."""
    store.set("refused", [kind is RanksMissing, text])
    raise kind(text)


def _stop_if_refused(store: RankStore) -> None:
    if (refused := store.get("refused")) is not None:
        missing, text = refused
        raise (RanksMissing if missing else RanksDiffer)(text)


def _twice(place: Place, other: str) -> str:
    return (
        f"two processes are rank {place.rank}: on {other} and on {place.host}\n"
        "give every node a NODE_RANK (or --node-rank) of its own, and start each once"
    )


def _other_size(place: Place, rank: int, other: Here) -> str:
    return (
        f"rank {rank} ({other.host}) is one of {other.size} ranks, but {place.name} one of {place.size}\n"
        "give all nodes the same trainer.devices and trainer.num_nodes, and as many processes"
    )


def _who_is_missing(store: RankStore, seconds: float) -> str:
    found = store.of_ranks("here", range(store.place.size))
    missing = [rank for rank, values in enumerate(found) if values is None]
    hosts = ", ".join(dict.fromkeys(values[0] for values in found if values is not None))
    return (
        f"{ranks_text(missing)} of {len(found)} did not come within {seconds:g} s (run.wait_for_ranks); "
        f"here: {len(found) - len(missing)} on {hosts}\n"
        "look at the output of the missing ones: they may have ended with an error, or never been started"
    )
